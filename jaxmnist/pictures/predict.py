"""Any picture of a digit as an MNIST image, what a model makes of it, and whether to believe it.

MNIST's own making (Y. LeCun, http://yann.lecun.com/exdb/mnist/): black and white digits were scaled
to fit into a 20x20 box with their aspect ratio kept, anti-aliased, and placed so that the centre of
mass is the centre of the 28x28 image. `centre` does that to the strokes of `find_strokes`.
"""

from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, UInt8
from scipy import ndimage

from jaxmnist.errors import DataError
from jaxmnist.model import MLP
from jaxmnist.pictures.picture import Source, read_picture
from jaxmnist.pictures.strokes import BOX, bounding_box, find_strokes
from jaxmnist.transforms import preprocess
from jaxmnist.types import AnyArray, Params
from jaxmnist.weights import layer_sizes, load_weights

SIDE = 28  # pixels of an MNIST image
INK = 100  # of 255, from which a pixel counts as ink for `doubt`
Doubt = Literal["uncertain", "no_digit"]


class Reading(NamedTuple):
    """What a model makes of a picture."""

    digit: int | None  # None in a blank picture
    probabilities: Float32[np.ndarray, " 10"]
    doubt: Doubt | None  # "uncertain": which digit? "no_digit": probably not a single digit
    why: str | None  # the doubt in a few words
    image: UInt8[np.ndarray, "28 28"]  # what the model was given, white (255) on black (0)


class Reader(NamedTuple):
    """Reads pictures of one digit each by a model."""

    params: Params

    def read(self, source: Source) -> Reading:
        """The digit in a picture: a path, a binary file, a PIL image or an array.

        Raises what `read_picture` raises. A blank picture is no error: its digit is None.
        """
        image = read_image(source)
        if not image.any():
            why = "it is blank: nothing stands out from its background"
            return Reading(None, np.zeros(10, np.float32), "no_digit", why, image)
        chances = np.exp(log_probabilities(self.params, image[None])[0])
        return Reading(int(chances.argmax()), chances, *doubt(image, chances), image)


def load_reader(path: str | Path) -> Reader:
    """A reader with the model in a run's directory (`scripts/train.py --out`) or a weights file.

    Raises a DataError where it is damaged or no model of 28x28 digits, and an OSError where it
    cannot be read.
    """
    params = load_weights(path)
    try:
        layer_sizes(params)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Reader(params)


def log_probabilities(
    params: Params, images: UInt8[AnyArray, "n 28 28"]
) -> Float32[np.ndarray, "n classes"]:
    """The logarithm of each class's probability for each image.

    It is the same for a model that ends in a log-softmax, which leaves its own result as it is.
    """
    with jax.default_matmul_precision("highest"):  # as in training
        return np.asarray(_log_probabilities(MLP(layer_sizes(params)[1:-1]), params, images))


@partial(jax.jit, static_argnums=0)
def _log_probabilities(model: MLP, params: Params, images: AnyArray) -> Array:
    return jax.nn.log_softmax(model.apply(params, preprocess(images)))


def read_image(source: Source) -> UInt8[np.ndarray, "28 28"]:
    """The digit in a picture as an MNIST image, white (255) on black (0); 0 if it is blank."""
    ink = find_strokes(read_picture(source))
    return centre(ink) if ink.any() else np.zeros((SIDE, SIDE), np.uint8)


def doubt(
    image: UInt8[np.ndarray, "28 28"], probabilities: Float[np.ndarray, " classes"]
) -> tuple[Doubt | None, str | None]:
    """Whether to doubt a reading, and why: plain rules on what the model is given and says.

    A model that knows ten digits calls everything one of them. "no_digit" is for what is probably
    not a single one: two digits, a dash, a cross, a frame, a spot (not a tick, nor every scribble).
    "uncertain" means that no digit has a probability of 0.8.

    Args:
        image: as `read_image` gives it, not blank.
        probabilities: the model's.
    """
    box, sure = bounding_box(image >= INK), float(probabilities.max())
    ink, grey = image[box] >= INK, image[box].astype(float)
    ratio, share = ink.shape[1] / ink.shape[0], ink.mean()
    hollow = (ndimage.binary_fill_holes(ink) & ~ink).mean()
    crossed = np.diff(ink, prepend=False, append=False).sum() / 2 / len(ink)  # strokes in a row
    symmetric = min(_alike(grey, grey[::-1]), _alike(grey, grey[:, ::-1])) > 0.6
    for reason, holds in (
        ("it is wider than a digit", ratio > 1.7),
        ("it has more lines than one digit", crossed + 0.25 * ratio + 0.5 * (1 - sure) > 2.1),
        ("it is a frame", ratio > 0.5 and share + hollow > 0.93 and hollow > 0.35),
        ("it is a spot", ratio > 0.5 and share > 0.74),
        ("it is symmetric as a cross is", ratio > 0.5 and hollow < 0.01 and symmetric),
    ):
        if holds:
            return "no_digit", reason
    return ("uncertain", "the model is not sure") if sure < 0.8 else (None, None)


def _alike(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float:
    """The correlation of two orders of the same numbers."""
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a.var() * a.size + 1e-12))


def centre(ink: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Ink, on paper that is 0, as an image by MNIST's conventions. Pure.

    The rule, in float64. Pixel `[i, j]` is the square from `(i, j)` to `(i + 1, j + 1)`, and
    `round(x)` is `floor(x + 0.5 + 1e-6)`: halves go up, whatever the last bits are.

    1. The extent: rows `y0 <= i < y1` and columns `x0 <= j < x1`, the smallest rectangle with
       every pixel of at least a quarter of the largest one.
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

    Args:
        ink: finite, at least 0, and above 0 somewhere.
    """
    ink = ink.astype(np.float64)
    box = bounding_box(ink >= 0.25 * ink.max())
    scale = max(side.stop - side.start for side in box) / BOX
    masses = ink.sum(axis=1), ink.sum(axis=0)
    rows, columns = (_windows(*pair, scale) for pair in zip(masses, box, strict=True))
    pixels = rows @ ink @ columns.T
    return np.floor(pixels * (255 / pixels.max()) + (0.5 + 1e-6)).astype(np.uint8)


def _windows(
    mass: Float64[np.ndarray, " n"], extent: slice, scale: float
) -> Float64[np.ndarray, "28 n"]:
    """Along one axis, the share that each old pixel has in each new one; `mass` is its ink."""
    old, start, end = np.arange(len(mass)), extent.start, extent.stop
    centre = mass @ (old + 0.5) / mass.sum()
    most = SIDE - _round((end - start) / scale)
    first = min(max(_round(SIDE / 2 + 0.5 - (centre - start) / scale), 0), most)
    edges = start + (np.arange(SIDE + 1)[:, None] - first) * scale
    overlap = np.minimum(edges[1:], old + 1) - np.maximum(edges[:-1], old)
    return np.maximum(overlap, 0) / scale


def _round(x: float) -> int:
    return int(np.floor(x + 0.5 + 1e-6))
