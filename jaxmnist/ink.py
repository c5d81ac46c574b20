"""The ink in a picture of a digit: any size, any colours, a photo, a scan or a drawing."""

import numpy as np
from jaxtyping import Bool, Float, Float32

from jaxmnist.surroundings import panel, slope, without_lines, without_underline

SMALL = 64  # pixels a side; up to there a picture is used as it is
CONTRAST = 0.06  # of ink and paper, as a distance of colours; below it a picture is blank
NOISE = 4  # times what is least in a quarter of the picture, the noise, is at least the contrast
WEAK = 0.3  # of the strongest ink; so much is ink where it is connected with
STRONG = 0.5  # ... as much as this
SHARP = (0.1, 0.7)  # in a large picture ink of less than the first is none, from the second on full
FLAT = 3.5  # times as wide as high is an underline, at least
RINGS = (0, 0.02, 0.04, 0.06, 0.08)  # of the sides lie within the border
BOX = 20  # pixels of a digit's longer side in an MNIST image
FINE = 8  # pixels become one of MNIST's where strokes are thickened
STROKE = 2.4  # of MNIST's pixels, the median width of its strokes
FINE_STROKE = 1.6  # of MNIST's pixels; thinner strokes are thickened


def ink_of(picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h2 w2"]:
    """How much ink is where in a picture of one digit, from 0 to 1; all 0 in a blank one.

    What comes back is the digit and a margin, smaller or larger than the picture.

    The ink is what differs from its surroundings. It may be dark on light or light on dark, in any
    two colours, on paper that is lit unevenly; on a sheet on a desk, in a frame, on ruled paper.
    Weak ink counts where it is connected with strong ink. Shadows' edges, specks, what is
    underlined and what reaches in from the border are left out where there is something else.
    Strokes thinner than MNIST's usual ones are thickened. Ink in a small picture, up to SMALL
    pixels a side, keeps its grey levels; in a larger one it is black or white but for the edges, as
    MNIST's digits were before they were shrunk.
    """
    picture = panel(panel(picture))
    small = max(picture.shape[:2]) <= SMALL
    ink = _contrast(picture, small)
    strong = _digit(ink) if ink.any() else ink.astype(bool)
    if not strong.any():
        return np.zeros_like(ink)
    # What is nearer to something else, as a line that was removed, is no edge of the digit.
    away, other = _distance(strong), _distance((ink >= WEAK) & ~strong)
    ink = np.where((away <= max(1.0, _pitch(strong))) & (away < other), ink, 0)
    if small and _stroke_width(ink / ink.max()) / _pitch(strong) >= FINE_STROKE:
        return (np.pad(ink, 1) / ink.max()).astype(np.float32)
    ink = _at_size(ink, strong)
    return _thicken(np.clip((ink - SHARP[0]) / (SHARP[1] - SHARP[0]), 0, 1))


def _contrast(picture: Float32[np.ndarray, "h w 3"], small: bool) -> Float32[np.ndarray, "h w"]:
    """The ink, of which the strongest is 1; 0 everywhere if nothing stands out."""
    from scipy import ndimage

    if not small:  # light from one side would be ink where it is darkest
        picture = picture - slope(picture)
    smooth = picture if small else ndimage.uniform_filter(picture, (3, 3, 1))  # against noise
    axis = _ink_colour(smooth, small)
    paper = _paper(smooth @ axis, small)
    ink = np.maximum(picture @ axis - paper, 0)
    if (axis < 0.1).all():  # dark on light: in the shade there is less light to take away
        ink *= np.median(paper) / np.minimum(paper, -0.05)
    smooth = ink if small else ndimage.uniform_filter(ink, 3)
    level = smooth.max()
    if level < (CONTRAST if small else max(CONTRAST, NOISE * np.quantile(smooth, 0.25))):
        return np.zeros_like(ink, np.float32)
    return (ink / level).astype(np.float32)


def _ink_colour(picture: Float32[np.ndarray, "h w 3"], small: bool) -> Float32[np.ndarray, " 3"]:
    """The direction from the paper's colour to the ink's, a unit vector; 0 for a flat picture.

    It is the principal axis of the differences from a wide mean around each pixel. They are cut in
    two, and paper is what more of the picture and of rings along its border belongs to.
    """
    from scipy import ndimage

    wide = max(1, max(picture.shape[:2]) // 2)
    difference = picture - ndimage.uniform_filter(picture, (wide, wide, 1), mode="nearest")
    flat = difference.reshape(-1, 3)
    axis = np.linalg.eigh(flat.T @ flat)[1][:, -1]
    along = (picture if small else difference) @ axis
    high = along > (along.min() + along.max()) / 2
    rings = np.mean([_ring(high, depth).mean() for depth in RINGS])
    return axis if (rings + high.mean()) / 2 < 0.5 else -axis


def _ring(values: np.ndarray, depth: float) -> np.ndarray:
    """The values on the rectangle that lies within the border by this share of the sides."""
    y, x = (int(depth * side) for side in values.shape)
    inner = values[y : values.shape[0] - y, x : values.shape[1] - x]
    return np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])


def _paper(darkness: Float32[np.ndarray, "h w"], small: bool) -> Float32[np.ndarray, "h w"]:
    """What would be there without ink: what is dark in all of a window a quarter as wide."""
    from scipy import ndimage

    if small:  # the digit may fill it, but hardly all of its border
        return np.full_like(darkness, np.quantile(_ring(darkness, 0), 0.25))
    reach = max(1, round(max(darkness.shape) / 8))
    paper = ndimage.grey_opening(darkness, 2 * reach + 1, mode="nearest")
    return ndimage.uniform_filter(paper, 2 * (reach // 4) + 1, mode="nearest")


def _digit(ink: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where the digit is: parts that are no lines, no specks and, if there are any, no border."""
    from scipy import ndimage

    mask = without_lines(ink >= WEAK)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    mass = np.bincount(parts.ravel(), ink.ravel(), count + 1)
    mass[np.bincount(parts[ink >= STRONG], minlength=count + 1) == 0] = 0
    mass[0] = 0  # the rest of the picture
    inner = mass.copy()
    inner[_ring(parts, 0)] = 0
    if inner.max() > 0.1 * mass.max():
        mass = inner
    mass[_underlines(ndimage.find_objects(parts), mass)] = 0
    return without_underline((mass > 0.1 * mass.max())[parts])


def _underlines(boxes: list[tuple[slice, slice]], mass: Float[np.ndarray, " n"]) -> list[int]:
    """The parts that are flat and lie below the largest of those that are not."""
    sides = np.array([[box[0].start, box[0].stop, box[1].stop - box[1].start] for box in boxes])
    top, bottom, width = sides.reshape(-1, 3).T
    flat = width > FLAT * (bottom - top)
    if flat.all():
        return []
    main = np.where(flat, 0, mass[1:]).argmax()
    low = top > bottom[main] - 0.1 * (bottom[main] - top[main])
    return [int(n) + 1 for n in np.flatnonzero(flat & low)]


def _pitch(inside: Bool[np.ndarray, "h w"]) -> float:
    """How many pixels become one where a digit of this extent becomes MNIST's size."""
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    return (max(np.ptp(rows), np.ptp(columns)) + 1) / BOX


def _at_size(
    ink: Float32[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h2 w2"]:
    """The part of the picture around the digit, FINE pixels for one of MNIST's."""
    from PIL import Image

    pitch = _pitch(inside)
    margin = 2 + round(pitch)
    ink, inside = np.pad(ink, margin), np.pad(inside, margin)
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    cut = [slice(at[0] - margin, at[-1] + 1 + margin) for at in (rows, columns)]
    part = Image.fromarray(ink[cut[0], cut[1]])
    size = [max(1, round(side * FINE / pitch)) for side in part.size]
    return np.asarray(part.resize((size[0], size[1]), Image.Resampling.BICUBIC))


def _stroke_width(ink: Float[np.ndarray, "h w"]) -> float:
    """The mean width of the strokes in pixels, also of a single one."""
    ink = np.pad(ink, 1)
    # A stroke has its width in ink and two edges, at each of which the ink goes from 0 to 1.
    edges = np.hypot(np.diff(ink, axis=0)[:, :-1], np.diff(ink, axis=1)[:-1]).sum()
    return float(2 * ink.sum() / edges)


def _thicken(ink: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h2 w2"]:
    """Strokes at least STROKE wide, where a pixel of MNIST's is FINE of these."""
    from scipy import ndimage

    reach = max(0, round((STROKE * FINE - _stroke_width(ink)) / 2))
    ink = np.pad(ink, reach)
    return ndimage.grey_dilation(ink, footprint=_disc(reach)).astype(np.float32)


def _distance(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Of each pixel to the nearest of the mask's; very large if it has none."""
    from scipy import ndimage

    if not mask.any():
        return np.full(mask.shape, np.inf)
    return ndimage.distance_transform_edt(~mask)


def _disc(reach: int) -> Bool[np.ndarray, "n n"]:
    away = np.arange(-reach, reach + 1)
    return away[:, None] ** 2 + away**2 <= (reach + 0.5) ** 2
