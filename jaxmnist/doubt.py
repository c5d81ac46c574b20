"""Whether a picture is probably no single digit: plain rules on the image that a model is given.

A model that knows ten digits calls everything one of them, and is often sure. The rules here look
for what is certainly none: several things side by side, a dash, a frame, a scribble, a cross.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

INK = 100  # of 255, from which a pixel counts as ink
PART = 0.15  # of the ink lies on each side of a gap, at least, if there are two things
WIDE = 1.6  # times as wide as high is no digit
HOLES = 3  # no digit has so many
HOLE = 2  # pixels in a hole, at least
FILLED = 0.74  # of the rectangle around it is covered by what is no line, if it is not narrow
NARROW = 0.5  # times as wide as high; below it the last rules do not apply, since a 1 is so
RECTANGLE = 0.93  # of the rectangle around it is enclosed by a frame
FRAME_HOLE = 0.35  # ... and so much of it is hole
MIRRORED = 0.6  # correlation with its mirror images of what is symmetric both ways
UNSURE = 0.8  # probability of the likeliest digit below which a model does not know


def doubt(
    image: UInt8[np.ndarray, "28 28"], probabilities: Float[np.ndarray, " classes"] | None = None
) -> str | None:
    """Why an image is probably no single digit, in a few words; None if nothing speaks against it.

    Of MNIST's images 2.5 % are doubted.

    Args:
        image: as `read_image` gives it.
        probabilities: the model's; without them only the shape is judged.
    """
    ink = image >= INK
    if not ink.any():
        return "nothing is there"
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = ink.shape
    left = np.cumsum(ink.sum(axis=0)) / ink.sum()
    if ((left > PART) & (left < 1 - PART) & ~ink.any(axis=0)).any():
        return "several things stand side by side"
    if width > WIDE * height:
        return "it is wider than a digit"
    holes, filled = _holes(ink)
    share, enclosed = ink.mean(), filled.mean()
    if holes >= HOLES:
        return "its lines cross too often, as in a scribble"
    if width > NARROW * height:
        if enclosed > RECTANGLE and enclosed - share > FRAME_HOLE:
            return "it is a frame"
        if share > FILLED:
            return "it is a spot"
        grey = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
        if holes == 0 and min(_alike(grey, grey[::-1]), _alike(grey, grey[:, ::-1])) > MIRRORED:
            return "it is symmetric as a cross is"
    if probabilities is None:
        return None
    if holes == 0 and probabilities.argmax() == 8:
        return "it is read as an 8, but no line of it is closed"
    return "the model is not sure" if probabilities.max() < UNSURE else None


def _holes(ink: Bool[np.ndarray, "h w"]) -> tuple[int, Bool[np.ndarray, "h w"]]:
    """How many holes there are, and the ink with all of them filled."""
    from scipy import ndimage

    filled = ndimage.binary_fill_holes(ink)
    sizes = np.bincount(ndimage.label(filled & ~ink)[0].ravel())[1:]
    return int((sizes >= HOLE).sum()), filled


def _alike(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-12))
