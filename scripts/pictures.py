"""Make README's pictures from a run of scripts/train.py; for maintainers, needs playwright."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

from _options import DataDirOptions, local_path, weights

# A three, in 280ths of the sketchpad.
THREE = [(88, 88), (106, 66), (145, 52), (180, 66), (187, 90), (178, 117), (139, 134), (168, 143),
         (190, 163), (198, 190), (183, 222), (160, 235), (122, 235), (104, 227),
         (82, 214)]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    run: Path = weights()
    out: Path = cli.option(cli.ROOT / ".github/pictures", "Directory for the pictures.", local_path)
    data: DataDirOptions = DataDirOptions()


def main(options: Options) -> None:
    """Draw the run, synthetic digits, a digit to read, and the sketchpad in use."""
    import numpy as np
    from PIL import Image, ImageDraw
    from scipy.interpolate import CubicSpline

    from jaxmnist import load_mnist
    from jaxmnist.datasets import load_synthetic
    from jaxmnist.pictures.predict import log_probabilities
    from jaxmnist.plots import digit_grid, run_figures
    from jaxmnist.runs.directory import read_run

    run, (_, test) = read_run(options.run), load_mnist(options.data.data_dir)
    arrays = *map(np.asarray, test), np.exp(log_probabilities(run.params, test.images))
    figures = run_figures(run.records, run.losses, run.params, *arrays)
    images, labels = (np.asarray(part) for part in load_synthetic()[0])
    rows = np.stack([images[labels == digit][:20] for digit in range(10)])
    figures["synthetic_digits.png"] = digit_grid(rows, "Synthetic digits")
    for name in ("loss.png", "mistakes.png", "synthetic_digits.png"):
        figures[name].savefig(options.out / name, dpi=110)
    stroke = CubicSpline(range(len(THREE)), THREE)(np.linspace(0, len(THREE) - 1, 100))
    picture = Image.new("L", (200, 200), 235)  # for scripts/predict.py
    ImageDraw.Draw(picture).line([*map(tuple, 200 / 280 * stroke)], 40, 14, "curve")
    picture.save(options.out / "digit.png")
    sketch(stroke, run.params, options.out / "sketchpad.png")
    print(f"Wrote the pictures of {options.out}")


def sketch(stroke: Any, params: Any, path: Path) -> None:
    """Draw the stroke on the exported page, in a browser, and take its picture."""
    from playwright.sync_api import sync_playwright

    from jaxmnist.export import to_page

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 800, "height": 610})
        file = Path(directory, "sketchpad.html")
        file.write_text(to_page(params), encoding="utf-8")
        page.goto(file.as_uri())
        box: Any = page.locator("#pad").bounding_box()
        first, *rest = ((box["x"], box["y"]) + box["width"] / 280 * stroke).tolist()
        page.mouse.move(*first)
        page.mouse.down()
        for place in rest:
            page.mouse.move(*place)
        page.mouse.up()
        page.wait_for_timeout(1000)  # the bars grow slowly
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
