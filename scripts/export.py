"""Export a trained model: safetensors, StableHLO, ONNX, and a page on which to draw digits."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
from pathlib import Path
from typing import Literal, get_args

from _options import load_model

Format = Literal["safetensors", "stablehlo", "onnx", "page"]
FORMATS = {  # the name of the file, and its use
    "safetensors": ("weights.safetensors", "PyTorch: safetensors.torch.load_file(path)"),
    "stablehlo": ("model.stablehlo", "JAX: jax.export.deserialize(content).call(images)"),
    "onnx": ("model.onnx", "onnxruntime; other runtimes may want a fixed number of images"),
    "page": ("sketchpad.html", "open it in a browser and draw"),
}


class Options(cli.Options):
    """The options."""

    weights: Path = cli.option(metavar="RUN")
    """A run of scripts/train.py --out, or a weights file."""
    out: Path = Path("runs/exported")
    """Directory for the files; what is there is replaced."""
    formats: tuple[Format, ...] = cli.option(get_args(Format), metavar="FORMAT")
    """What to write; stablehlo and onnx need the extra export."""


def main(options: Options) -> None:
    """Load the weights, make every file, then write them."""
    import jax

    from jaxmnist import export
    from jaxmnist.files import atomic_write
    from jaxmnist.weights import layer_sizes

    # Without this the program would name the Python files on this machine that made it.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    params, _ = load_model(options.weights)
    contents = {name: getattr(export, f"to_{name}")(params) for name in options.formats}
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"Exporting {'-'.join(map(str, layer_sizes(params)))} to {options.out}:")
    for name, content in contents.items():
        content = content.encode() if isinstance(content, str) else content
        file_name, use = FORMATS[name]
        with atomic_write(options.out / file_name) as file:
            file.write(content)
        print(f"  {file_name:19} {len(content) / 1000:5,.0f} kB\n      {use}")
    print("images: uint8 [n, 28, 28], 0 background to 255 ink; result: float32 [n, 10]")


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
