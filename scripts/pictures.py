"""Draw the README's pictures: what the notebook's run comes to, drawn digits, the sketchpad."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from _cli import run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# A three, in 280ths of the sketchpad.
THREE = [(88, 88), (106, 66), (145, 52), (180, 66), (187, 90), (178, 117), (139, 134), (168, 143),
         (190, 163), (198, 190), (183, 222), (160, 235), (122, 235), (104, 227),
         (82, 214)]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """The options."""

    out: Path = Path(__file__).parent.parent / ".github" / "pictures"
    """Directory for the pictures."""
    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""
    seed: int = 0
    """The run's seed."""


def main(config: Config) -> None:
    """Train as the notebook does and draw."""
    import jax
    import matplotlib.figure  # noqa: F401  (missed now, and not when all is trained)
    import numpy as np
    import optax

    from jaxmnist import (
        MLP,
        epoch_order,
        evaluate,
        init_state,
        load_mnist,
        make_train_epoch,
        make_train_step,
        preprocess,
    )
    from jaxmnist.datasets.synthetic import load_synthetic
    from jaxmnist.plots import confident_mistakes, digit_grid, loss_curve, mistake_grid

    train, test = jax.device_put(load_mnist(config.data_dir))
    model, tx, key = MLP(), optax.sgd(0.003), jax.random.key(config.seed)
    train_epoch = jax.jit(make_train_epoch(make_train_step(model.apply, tx)))
    run_test = jax.jit(lambda params: evaluate(model.apply, params, test))
    state, losses, records = init_state(key, model, tx), [], []
    for epoch in range(5):
        state, metrics = train_epoch(state, train, epoch_order(key, epoch, len(train.labels)))
        losses.append(np.asarray(metrics["loss"]))
        scores = run_test(state.params)
        records.append(
            {
                "train_loss": float(losses[-1].mean()),
                "test_loss": float(scores["loss"]),
                "test_accuracy": float(scores["accuracy"]),
            }
        )
    drawn, _ = load_synthetic(config.seed)
    rows = [drawn.images[drawn.labels == digit][:20] for digit in range(10)]
    images, labels = jax.device_get(test)
    logits = jax.jit(lambda params: model.apply(params, preprocess(test.images)))(state.params)
    chances = np.asarray(jax.nn.softmax(logits))
    worst = confident_mistakes(chances, labels)
    figures = {
        "loss.png": loss_curve(np.stack(losses), records),
        "mistakes.png": mistake_grid(images[worst], chances[worst], labels[worst]),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(config.out / name, dpi=110)
    digit_grid(np.stack(rows)).savefig(config.out / "drawn_digits.png", dpi=100)
    print(f"{', '.join(figures)} and drawn_digits.png are in {config.out}")
    sketch(jax.device_get(state.params), config.out / "sketchpad.png")


def sketch(params: Any, path: Path) -> None:
    """Draw a three on the exported page, in a browser, and take its picture."""
    import numpy as np
    from scipy.interpolate import CubicSpline

    from jaxmnist.export import to_page

    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        print(f"Note: {path} is not drawn: that needs jaxmnist[oracle]", file=sys.stderr)
        return
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        own = playwright.chromium.executable_path
        browser_path = next(filter(None, map(shutil.which, BROWSERS)), own)
        try:
            browser = playwright.chromium.launch(executable_path=browser_path)
        except Error:
            print(f"Note: {path} is not drawn: {browser_path} does not start", file=sys.stderr)
            return
        page = browser.new_page(viewport={"width": 800, "height": 610})
        file = Path(directory, "sketchpad.html")
        file.write_text(to_page(params), encoding="utf-8")
        page.goto(file.as_uri())
        box = page.locator("#pad").bounding_box()
        assert box is not None
        corner, scale = np.array([box["x"], box["y"]]), box["width"] / 280
        curve = CubicSpline(np.arange(len(THREE)), THREE)(np.linspace(0, len(THREE) - 1, 100))
        first, *rest = (corner + scale * curve).tolist()
        page.mouse.move(*first)
        page.mouse.down()
        for place in rest:
            page.mouse.move(*place)
        page.mouse.up()
        page.wait_for_timeout(1000)  # the bars grow slowly
        page.screenshot(path=path)
        browser.close()
    print(f"{path.name} too")


if __name__ == "__main__":
    run(main, Config, __doc__)
