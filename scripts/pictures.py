"""Make README's pictures: losses, mistakes, drawn digits, a digit to predict, the sketchpad."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from _options import DataDirOptions, local_path
from _output import printable

if TYPE_CHECKING:
    import numpy as np

    from jaxmnist import Dataset, TrainState
    from jaxmnist.types import Metrics, Params

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# A three, in 280ths of the sketchpad.
THREE = [(88, 88), (106, 66), (145, 52), (180, 66), (187, 90), (178, 117), (139, 134), (168, 143),
         (190, 163), (198, 190), (183, 222), (160, 235), (122, 235), (104, 227),
         (82, 214)]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    out: Path = cli.option(
        cli.ROOT / ".github" / "pictures", "Directory for the pictures.", local_path, metavar="DIR"
    )
    data: DataDirOptions = DataDirOptions()


def main(options: Options) -> None:
    """Train as the notebook does and make the pictures."""
    import jax
    import matplotlib.figure  # noqa: F401  (missed now rather than after the training)
    import numpy as np

    from jaxmnist import load_mnist
    from jaxmnist.datasets import load_synthetic
    from jaxmnist.plots import digit_grid, loss_curves, mistake_grid
    from jaxmnist.predict import evaluate_model

    dataset, test = load_mnist(options.data.data_dir)
    state, metrics = jax.device_get(jax.jit(train_notebook)(dataset, test))
    names = ("train_loss", "test_loss", "test_accuracy")
    columns = (metrics["loss"].mean(axis=1), metrics["test_loss"], metrics["test_accuracy"])
    rows_of_epochs = zip(*(column.tolist() for column in columns), strict=True)
    records = [dict(zip(names, row, strict=True)) for row in rows_of_epochs]
    found = evaluate_model(state.params, test)
    images, labels = (np.asarray(part) for part in test)
    mistakes = mistake_grid(images, labels, found.probabilities)
    drawn, _ = load_synthetic()
    rows = [drawn.images[drawn.labels == digit][:20] for digit in range(10)]
    figures = {
        "loss.png": (loss_curves({"the notebook's run": records}, metrics["loss"]), 110),
        "mistakes.png": (mistakes, 110),
        "drawn_digits.png": (digit_grid(np.stack(rows), "Synthetic digits"), 100),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (figure, dpi) in figures.items():
        figure.savefig(options.out / name, dpi=dpi)
    draw_digit(options.out / "digit.png")
    print(f"{', '.join(figures)}, digit.png are in {printable(options.out)}")
    problem = sketch(state.params, options.out / "sketchpad.png")
    print(f"Note: sketchpad.png is left as it was: {problem}" if problem else "sketchpad.png too")


def train_notebook(dataset: Dataset, test: Dataset) -> tuple[TrainState, Metrics]:
    """The notebook's run."""
    import jax
    import optax

    from jaxmnist import evaluate, init_state, train
    from jaxmnist.runs.setup import make_training

    key, tx = jax.random.key(0), optax.sgd(0.003)
    model, train_step, metrics = make_training((128, 64), "cross_entropy", None, tx)
    state = init_state(model, tx, key)
    return train(
        train_step, state, dataset, key, test=lambda state: evaluate(metrics, state.params, test)
    )


def stroke() -> np.ndarray:
    """The points of the three, [100, 2], joined by a curve."""
    import numpy as np
    from scipy.interpolate import CubicSpline

    last = len(THREE) - 1
    return CubicSpline(np.arange(last + 1), THREE)(np.linspace(0, last, 100))


def draw_digit(path: Path, size: int = 200) -> None:
    """Write the three as a picture that scripts/predict.py reads: dark ink on light paper."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (2 * size, 2 * size), 235)
    pen = ImageDraw.Draw(picture)
    radius = size / 14
    for x, y in 2 * size / 280 * stroke():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=40)
    picture.resize((size, size), Image.Resampling.LANCZOS).save(path, optimize=True)


def sketch(params: Params, path: Path) -> str | None:
    """Draw a three on the exported page, in a browser, and take its picture; or why not."""
    import numpy as np

    from jaxmnist.export import to_page

    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        return f"it needs playwright: {cli.install_hint('oracle')}"
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        own = playwright.chromium.executable_path
        browser_path = next(filter(None, map(shutil.which, BROWSERS)), own)
        try:
            browser = playwright.chromium.launch(executable_path=browser_path)
        except Error:
            return f"{browser_path} does not start"
        page = browser.new_page(viewport={"width": 800, "height": 610})
        file = Path(directory, "sketchpad.html")
        file.write_text(to_page(params), encoding="utf-8")
        page.goto(file.as_uri())
        box = page.locator("#pad").bounding_box()
        assert box is not None
        corner, scale = np.array([box["x"], box["y"]]), box["width"] / 280
        first, *rest = (corner + scale * stroke()).tolist()
        page.mouse.move(*first)
        page.mouse.down()
        for place in rest:
            page.mouse.move(*place)
        page.mouse.up()
        page.wait_for_timeout(1000)  # the bars grow slowly
        page.screenshot(path=path)
        browser.close()
    return None


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
