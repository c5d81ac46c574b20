"""Export a trained model: safetensors, StableHLO, ONNX, and a page on which to draw digits."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
from pathlib import Path
from typing import Literal

from _options import load_model, local_path, weights

FILES = dict(safetensors="weights.safetensors", stablehlo="model.stablehlo", onnx="model.onnx")
FILES["page"] = "sketchpad.html"
USES = {
    "safetensors": "PyTorch: model.load_state_dict(safetensors.torch.load_file(path))",
    "stablehlo": "JAX, this or a newer one: jax.export.deserialize(content).call(images)",
    "onnx": "onnxruntime; other runtimes may want a fixed number of images",
    "page": "open it in a browser and draw",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Path = weights()
    out: Path = cli.option(
        Path("runs/exported"), "Directory for the files; what is there is replaced.", local_path
    )
    formats: tuple[Literal["safetensors", "stablehlo", "onnx", "page"], ...] = cli.option(
        tuple(FILES), "What to write; stablehlo and onnx need the extra export.", metavar="FORMAT"
    )


def main(options: Options) -> None:
    """Load the weights, make every file, then write them."""
    import jax

    from jaxmnist import export
    from jaxmnist.files import atomic_write
    from jaxmnist.runs.programs import find_device
    from jaxmnist.weights import layer_sizes

    find_device("cpu")  # wakes no accelerator: nothing is computed
    # Without this the program would name the Python files on this machine that made it.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    params, _ = load_model(options.weights)
    contents = {name: getattr(export, f"to_{name}")(params) for name in options.formats}
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"Exporting {'-'.join(map(str, layer_sizes(params)))} to {options.out}:")
    for name, content in contents.items():
        content = content.encode() if isinstance(content, str) else content
        with atomic_write(options.out / FILES[name]) as file:
            file.write(content)
        print(f"  {FILES[name]:19} {len(content) / 1000:5,.0f} kB\n      {USES[name]}")
    if {"stablehlo", "onnx"} & set(contents):
        print("images: uint8 [n, 28, 28], 0 background to 255 ink; result: float32 [n, 10]")


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
