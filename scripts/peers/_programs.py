"""The programs that scripts/benchmark.py times."""

from pathlib import Path
from typing import NamedTuple

PEERS = Path(__file__).parent
TRAIN = PEERS.parent / "train.py"


class Program(NamedTuple):
    """A program to time. It prints its result as a line of JSON, or as scripts/train.py does."""

    label: str
    path: Path
    needs: str = ""  # a package
    ours: bool = False
    embedded: bool = False  # what it prints is not the training of five epochs
    gpu: bool = False  # runs on a GPU only
    one_thread: bool = False  # XLA's on a CPU, which has one for each core otherwise


PROGRAMS = {
    "ours": Program("jaxmnist", TRAIN, ours=True),
    "ours-cold": Program("jaxmnist, first start (nothing compiled)", TRAIN, ours=True),
    "numpy": Program("NumPy by hand, OpenBLAS", PEERS / "numpy_openblas.py"),
    "linen": Program("Flax Linen, a step per batch", PEERS / "flax_linen.py"),
    "nnx": Program("Flax NNX, a step per batch", PEERS / "flax_nnx.py"),
    "equinox": Program("Equinox, a step per batch", PEERS / "equinox_optax.py", "equinox"),
    "torch": Program("PyTorch, data in memory", PEERS / "torch_eager.py", "torch"),
    "torch-compile": Program("PyTorch, torch.compile", PEERS / "torch_compile.py", "torch"),
    "torch-graphs": Program("PyTorch, CUDA graphs", PEERS / "torch_graphs.py", "torch", gpu=True),
    "notebook": Program("PyTorch as in the notebook", PEERS / "torch_notebook.py", "torch"),
    "import": Program("import jax, flax, optax: no more", PEERS / "imports_only.py"),
    "embedded": Program("Embedded", PEERS / "ours_embedded.py", ours=True, embedded=True),
    "embedded-1": Program(
        "Embedded, one thread",
        PEERS / "ours_embedded.py",
        ours=True,
        embedded=True,
        one_thread=True,
    ),
}
