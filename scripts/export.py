"""Export a trained model: safetensors, StableHLO, ONNX, and a page on which to draw digits."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import tyro
from _cli import run

Format = Literal["safetensors", "stablehlo", "onnx", "page"]

FILES = {  # the file of each format, and how it is used
    "safetensors": (
        "weights.safetensors",
        "PyTorch: model.load_state_dict(safetensors.torch.load_file(path))",
    ),
    "stablehlo": (
        "model.stablehlo",
        'JAX: jax.export.deserialize(open(path, "rb").read()).call(images)',
    ),
    "onnx": (
        "model.onnx",
        'ONNX: onnxruntime.InferenceSession(path).run(None, {"images": images})',
    ),
    "page": ("sketchpad.html", "open it in a browser and draw"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The options."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """A weights file, or the directory that scripts/train.py --out wrote."""
    out: Path
    """New directory for the files."""
    formats: tuple[Format, ...] = ("safetensors", "stablehlo", "onnx", "page")
    """What to write; stablehlo and onnx need the extra jaxmnist[export]."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        if not self.formats:
            raise ValueError(f"--formats needs at least one of {', '.join(FILES)}")


def main(config: Config) -> None:
    """Load the weights, make every file, then write them."""
    import jax

    from jaxmnist import JaxmnistError, export
    from jaxmnist.errors import UsageError
    from jaxmnist.predict import load_model

    jax.config.update("jax_platforms", "cpu")  # wakes no accelerator: nothing is computed
    # Without this the program would name the Python files on this machine that made it.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    if config.out.exists() and not (config.out.is_dir() and not any(config.out.iterdir())):
        raise UsageError(f"--out {config.out}: is there already; name a new directory")
    _, params = load_model(config.weights)
    contents = {}
    for name in dict.fromkeys(config.formats):
        try:
            content = getattr(export, f"to_{name}")(params)
        except ModuleNotFoundError as error:
            raise JaxmnistError(
                f"--formats {name} needs {error.name}: pip install 'jaxmnist[export]', "
                "or name the formats that you want, for instance --formats safetensors page"
            ) from error
        contents[name] = content.encode() if isinstance(content, str) else content
    write(config.out, {FILES[name][0]: content for name, content in contents.items()})

    sizes = "-".join(map(str, export.layer_sizes(params)))
    print(f"Exported {config.weights}, {sizes}, to {config.out}")
    for name, content in contents.items():
        file, use = FILES[name]
        print(f"  {file:19} {len(content) / 1000:5,.0f} kB   {use}")
    if {"stablehlo", "onnx"} & set(contents):
        print("images: uint8 [n, 28, 28], 0 background to 255 ink; the result: float32 [n, 10]")


def write(out: Path, contents: dict[str, bytes]) -> None:
    """Write the files; the directory appears complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=f".{out.name}-", ignore_cleanup_errors=True
    ) as name:
        for file, content in contents.items():
            Path(name, file).write_bytes(content)
        os.chmod(name, 0o755)  # a temporary directory is private
        os.replace(name, out)


if __name__ == "__main__":
    run(main, Config, __doc__)
