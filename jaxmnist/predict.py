"""Any picture of a digit as an MNIST image, and what a model makes of it.

MNIST's own making (Y. LeCun, http://yann.lecun.com/exdb/mnist/): black and white digits were scaled
to fit into a 20x20 box with their aspect ratio kept, anti-aliased, and placed so that the centre of
mass is the centre of the 28x28 image. `centre` does that to ink; `jaxmnist.ink` finds the ink.
"""

import math
import os
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, UInt8

from jaxmnist.data import Dataset
from jaxmnist.errors import DataError
from jaxmnist.evaluation import classifier_metrics, evaluate
from jaxmnist.ink import BOX, ink_of
from jaxmnist.metrics import confusion_matrix
from jaxmnist.model import MLP
from jaxmnist.picture import read_picture
from jaxmnist.transforms import preprocess
from jaxmnist.types import AnyArray, ApplyFn, Metrics, Params
from jaxmnist.weights import layer_sizes, load_weights

SIDE = 28  # pixels of an MNIST image
FAINT = 0.25  # ink below this share of the darkest does not count for a digit's extent


def load_model(path: str | os.PathLike[str]) -> tuple[MLP, Params]:
    """The model whose weights are in a file, or in a directory of `scripts/train.py --out`.

    The hidden sizes are read from the weights. One trained with a log-softmax head is given
    without it, which makes no difference to its probabilities: softmax(log_softmax(x)) is
    softmax(x). Raises a DataError where it is missing, damaged or no model of 28x28 digits.
    """
    params = load_weights(path)
    try:
        return MLP(layer_sizes(params)[1:-1]), params
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def predict(
    apply_fn: ApplyFn, params: Params, images: UInt8[AnyArray, "n 28 28"]
) -> Float[Array, "n classes"]:
    """The probability of each class; a row sums to 1. Pure."""
    return jax.nn.softmax(apply_fn(params, preprocess(images)))


class ModelMetrics(NamedTuple):
    """What a model makes of a test set of n images."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float
    confusion: Int[np.ndarray, "classes classes"]  # [i, j] counts images of i predicted as j
    probabilities: Float[np.ndarray, "n classes"]


def evaluate_model(params: Params, test: Dataset) -> ModelMetrics:
    """Evaluate the `MLP` of these parameters on every test image, and keep the probabilities.

    Raises a DataError as `layer_sizes` does.
    """
    model = MLP(layer_sizes(params)[1:-1])
    metrics_fn = classifier_metrics(model.apply)

    def outputs_fn(params: Params, batch: Dataset) -> Metrics:
        probabilities = predict(model.apply, params, batch.images)
        return metrics_fn(params, batch) | {"probabilities": probabilities}

    def summarize(outputs: Metrics, test: Dataset) -> Metrics:
        means = {name: outputs[name].mean() for name in ("loss", "accuracy")}
        return means | {"probabilities": outputs["probabilities"]}

    run = jax.jit(partial(evaluate, outputs_fn, summarize=summarize))
    with jax.default_matmul_precision("highest"):  # as in training
        found = jax.device_get(run(params, test))
    probabilities = found["probabilities"]
    predictions, classes = probabilities.argmax(axis=1), probabilities.shape[1]
    confusion = confusion_matrix(test.labels, predictions, classes)
    return ModelMetrics(float(found["loss"]), float(found["accuracy"]), confusion, probabilities)


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "28 28"]:
    """The digit in a picture file as an MNIST image, white (255) on black (0).

    Raises a DataError where the file cannot be read, as `read_picture`, or shows nothing.
    """
    ink = ink_of(read_picture(path))
    if not ink.any():
        raise DataError(f"{path}: blank: nothing in it stands out from its background")
    return centre(ink)


def centre(ink: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Ink, on paper that is 0, as an image by MNIST's conventions. Pure.

    The rule, in float64. Pixel `[i, j]` is the square from `(i, j)` to `(i + 1, j + 1)`, and
    `round(x)` is `floor(x + 0.5 + 1e-6)`: halves go up, whatever the last bits are.

    1. The extent: rows `y0 <= i < y1` and columns `x0 <= j < x1`, the smallest rectangle with
       every pixel of at least `FAINT` times the largest one.
    2. The scale: `s = max(y1 - y0, x1 - x0) / 20` old pixels are one new pixel.
    3. The centre of mass of all ink: `cy = sum(ink[i, j] * (i + 0.5)) / sum(ink)`, `cx` alike.
    4. The place: the extent's upper left corner becomes that of the new pixel `[top, left]`, with
       `top = round(14.5 - (cy - y0) / s)`, so that the centre of mass lies in the middle of new
       pixel 14, give or take half of one; limited to `0 .. 28 - round((y1 - y0) / s)` so that the
       extent stays inside. `left` alike, with `cx`, `x0` and `x1`.
    5. The pixels: new pixel `[r, c]` is the mean ink of the square that it covers, rows
       `y0 + (r - top) * s` to `y0 + (r - top + 1) * s` and columns alike, where old pixels count
       by the part of them inside, and outside of the old image there is no ink.
    6. The grey levels: `round(255 * pixel / max(pixels))`.

    An MNIST image comes back as it is, but for one whose largest grey level is 254.

    Raises:
        ValueError: there is no ink, or a value is negative or not finite.
    """
    if not (ink.size and np.isfinite(ink).all() and ink.min() >= 0 and ink.max() > 0):
        raise ValueError("ink must be finite, at least 0, and above 0 somewhere")
    ink = ink.astype(np.float64)
    inside = ink >= FAINT * ink.max()
    extents = [(np.flatnonzero(inside.any(axis))[[0, -1]] + [0, 1]).tolist() for axis in (1, 0)]
    scale = max(end - start for start, end in extents) / BOX
    rows, columns = (
        _windows(ink.sum(axis), start, end, scale)
        for axis, (start, end) in zip((1, 0), extents, strict=True)
    )
    pixels = rows @ ink @ columns.T
    return np.floor(pixels * (255 / pixels.max()) + (0.5 + 1e-6)).astype(np.uint8)


def _windows(
    mass: Float64[np.ndarray, " n"], start: int, end: int, scale: float
) -> Float64[np.ndarray, "28 n"]:
    """Along one axis, the share that each old pixel has in each new one; `mass` is its ink."""
    old = np.arange(len(mass))
    centre = mass @ (old + 0.5) / mass.sum()
    most = SIDE - _round((end - start) / scale)
    first = min(max(_round(SIDE / 2 + 0.5 - (centre - start) / scale), 0), most)
    edges = start + (np.arange(SIDE + 1)[:, None] - first) * scale
    overlap = np.minimum(edges[1:], old + 1) - np.maximum(edges[:-1], old)
    return np.maximum(overlap, 0) / scale


def _round(x: float) -> int:
    return math.floor(x + 0.5 + 1e-6)
