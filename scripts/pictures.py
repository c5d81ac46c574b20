"""Make README's pictures from a run of scripts/train.py; for maintainers, needs playwright."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
import shutil
from pathlib import Path
from typing import Any

# A three, in 280ths of the sketchpad.
THREE = [(88, 88), (106, 66), (145, 52), (180, 66), (187, 90), (178, 117), (139, 134), (168, 143),
         (190, 163), (198, 190), (183, 222), (160, 235), (122, 235), (104, 227),
         (82, 214)]  # fmt: skip


class Options(cli.Options):
    """The options."""

    run: Path = cli.option(metavar="RUN")
    """A run of scripts/train.py --plots --out."""
    out: Path = cli.ROOT / ".github/pictures"
    """Directory for the pictures."""


def main(options: Options) -> None:
    """Take the run's plots; draw synthetic digits, a digit to read, and the sketchpad in use."""
    import numpy as np
    from PIL import Image, ImageDraw
    from playwright.sync_api import sync_playwright
    from scipy.interpolate import CubicSpline

    from jaxmnist.datasets import load_synthetic
    from jaxmnist.export import to_page
    from jaxmnist.plots import digit_grid, save_figure
    from jaxmnist.weights import load_weights

    for name in ("loss.png", "mistakes.png"):
        shutil.copy(options.run / name, options.out)
    images, labels = map(np.asarray, load_synthetic()[0])
    rows = np.stack([images[labels == digit][:20] for digit in range(10)])
    save_figure(digit_grid(rows, "Synthetic digits"), options.out / "synthetic_digits.png")
    stroke = CubicSpline(range(len(THREE)), THREE)(np.linspace(0, len(THREE) - 1, 100))
    picture = Image.new("L", (200, 200), 235)  # for scripts/predict.py
    ImageDraw.Draw(picture).line([*map(tuple, 200 / 280 * stroke)], 40, 14, "curve")
    picture.save(options.out / "digit.png")

    # the sketchpad: draw the stroke on the exported page, in a browser
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 800, "height": 610})
        page.set_content(to_page(load_weights(options.run)))
        box: Any = page.locator("#pad").bounding_box()
        first, *rest = ((box["x"], box["y"]) + box["width"] / 280 * stroke).tolist()
        page.mouse.move(*first)
        page.mouse.down()
        for place in rest:
            page.mouse.move(*place)
        page.mouse.up()
        page.wait_for_timeout(1000)  # the bars grow slowly
        page.screenshot(path=options.out / "sketchpad.png")
    print(f"Wrote the pictures of {options.out}")


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
