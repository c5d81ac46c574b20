"""Export a trained model: safetensors, StableHLO, ONNX, and a page on which to draw digits."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
from pathlib import Path
from typing import Any, Literal

from _options import local_path, weights, wrong
from _output import printable

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
class Options:
    """The options."""

    weights: Path = weights()
    out: Path = cli.option(
        help="Directory for the files; the result of an earlier export is replaced.",
        check=local_path,
        metavar="DIR",
    )
    formats: tuple[Format, ...] = cli.option(
        ("safetensors", "stablehlo", "onnx", "page"),
        "What to write: safetensors, stablehlo, onnx or page.",
        metavar="FORMAT",
    )

    def __post_init__(self) -> None:
        if not self.formats:
            wrong(f"--formats needs at least one of {', '.join(FILES)}")


def main(options: Options) -> None:
    """Load the weights, make every file, then write them."""
    import jax

    from jaxmnist.files import may_replace, write_directory
    from jaxmnist.predict import load_model

    jax.config.update("jax_platforms", "cpu")  # wakes no accelerator: nothing is computed
    # Without this the program would name the Python files on this machine that made it.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    if not may_replace(options.out):
        wrong(
            f"--out {options.out}: already exists and was made by something else; "
            "name a new directory"
        )
    model, params = load_model(options.weights)
    contents = {name: convert(name, params) for name in dict.fromkeys(options.formats)}
    write_directory(options.out, {FILES[name][0]: content for name, content in contents.items()})

    sizes = "-".join(map(str, (784, *model.hidden, model.classes)))
    print(f"Exported {printable(options.weights)}, {sizes}, to {printable(options.out)}")
    for name, content in contents.items():
        file, use = FILES[name]
        print(f"  {file:19} {len(content) / 1000:5,.0f} kB   {use}")
    if {"stablehlo", "onnx"} & set(contents):
        print("images: uint8 [n, 28, 28], 0 background to 255 ink; the result: float32 [n, 10]")


def convert(name: str, params: Any) -> bytes:
    """The model in a format."""
    from jaxmnist import JaxmnistError, export

    try:
        content = getattr(export, f"to_{name}")(params)
    except ModuleNotFoundError as error:
        raise JaxmnistError(
            f"--formats {name} needs {error.name}: {cli.install_hint('export')}, "
            "or name the formats that you want, for instance --formats safetensors page"
        ) from error
    return content.encode() if isinstance(content, str) else content


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
