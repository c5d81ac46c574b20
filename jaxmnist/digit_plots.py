"""Plots of images, weights and probabilities, as matplotlib figures; saving them is the caller's.

matplotlib is the extra "plots", and is imported when a figure is made.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxmnist.plots import COLORS, GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confident_mistakes(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], count: int = 24
) -> Int[np.ndarray, " mistakes"]:
    """The indices of the mistakes of which the model was most confident, in falling order."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def mistake_grid(
    images: UInt8[np.ndarray, "n height width"],
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
) -> "Figure":
    """Mistaken images, each with its prediction and its label, and the probability of both."""
    from matplotlib.figure import Figure

    columns = 8
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.15 * columns, 1.45 * rows + 0.4), layout="constrained")
    title = (
        f"The {len(images)} most confident mistakes: what the model said and what it is, with the"
    )
    title += " probability that it gave to each"
    figure.suptitle(title if len(images) else "No test image was mistaken", size=11)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(images):
            label, chances = int(labels[number]), probabilities[number].tolist()
            taken = int(np.argmax(chances))
            axes.imshow(images[number], cmap="gray_r", vmin=0, vmax=255)
            lines = (
                f"said {taken}: {percent(chances[taken])}",
                f"is {label}: {percent(chances[label])}",
            )
            axes.set_title("\n".join(lines), size=9)
    return figure


def weight_grid(
    weight: Float[np.ndarray, "units 784"], columns: int = 16, most: int = 128
) -> "Figure":
    """The weights of the first layer's units as images of 28x28.

    Args:
        weight: that of the first layer, `params["params"]["linear_0"]["weight"]`.
        columns: units side by side.
        most: how many units are shown at most: those with the largest weights.
    """
    from matplotlib.figure import Figure

    units = len(weight)
    norms = np.linalg.norm(weight, axis=1)
    chosen = np.sort(np.argsort(-norms, kind="stable")[:most])
    rows = math.ceil(len(chosen) / columns)
    tiles = np.full((rows * columns, 30, 30), np.nan)  # 28 pixels and a gap
    tiles[: len(chosen), 1:29, 1:29] = weight[chosen].reshape(-1, 28, 28)
    tiled = tiles.reshape(rows, columns, 30, 30).transpose(0, 2, 1, 3).reshape(rows * 30, -1)
    limit = max(float(np.nanmax(np.abs(tiled))), 1e-12)
    figure = Figure(figsize=(columns * 0.5, rows * 0.5 + 1), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(tiled, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
    axes.set_axis_off()
    style: dict[str, Any] = {"location": "bottom", "shrink": 0.6, "aspect": 40}
    figure.colorbar(
        shown, ax=axes, label="weight of a pixel (above 0: ink raises the sum)", **style
    )
    which = f"{units}" if units <= most else f"{most} largest of {units}"
    axes.set_title(f"First-layer weights, 28x28: {which} units", size=10)
    return figure


def percent(share: float) -> str:
    """A share of 1 in percent, with one decimal; neither 0 nor 1 by rounding alone."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return "> 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def probability_figure(
    images: UInt8[np.ndarray, "n 28 28"],
    probabilities: Float[np.ndarray, "n classes"],
    names: Sequence[str] | None = None,
) -> "Figure":
    """Each image beside its probabilities; grey, for light and dark pages."""
    from matplotlib.figure import Figure

    columns = round(math.sqrt(len(images) / 2)) or 1
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(6 * columns, 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=(1, 1.7) * columns)
    pairs = grid.reshape(-1, 2)
    for (left, right), image, row, name in zip(
        pairs, images, probabilities, names or [""] * len(images), strict=False
    ):
        left.imshow(image, cmap="gray", vmin=0, vmax=255)
        left.set_axis_off()
        short = name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"
        left.set_title(short, fontsize=9, color=GREY, parse_math=False)
        colours = [COLORS[0]] * len(row)
        colours[row.argmax()] = COLORS[1]
        bars = right.barh(np.arange(len(row)), row, color=colours)
        right.bar_label(bars, [f"{p:.1%}" for p in row], padding=3, fontsize=7, color=GREY)
        right.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), yticks=range(len(row)), ylim=(9.6, -0.6))
        right.set_xlabel("probability", color=GREY, fontsize=9)
        right.set_ylabel("digit", color=GREY, fontsize=9)
        right.tick_params(colors=GREY, labelsize=8)
        right.spines[["top", "right"]].set_visible(False)
        right.spines[["left", "bottom"]].set_color(GREY)
    for axes in pairs[len(images) :].ravel():
        axes.set_axis_off()
    return figure


def digit_grid(images: UInt8[np.ndarray, "rows columns height width"]) -> "Figure":
    """The images side by side, white on black."""
    from matplotlib.figure import Figure

    rows, columns, height, width = images.shape
    figure = Figure(figsize=(columns * 0.42, rows * 0.42))
    axes = figure.add_axes((0, 0, 1, 1))
    tiled = images.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    axes.imshow(tiled, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    return figure


def png_url(image: UInt8[np.ndarray, "height width"]) -> str:
    """A digit, dark on light, as a data URL."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(255 - image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
