"""The strokes of a digit in a picture: dark on light or light on dark, a photo or a drawing."""

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image
from scipy import ndimage

SMALL = 64  # pixels a side; up to there a picture's grey levels are kept
CONTRAST = 0.06  # least contrast of ink and paper; a picture with less is blank
NOISE = 4  # the strongest ink must exceed so many times the noise, the ink's lower quartile
EVEN = 0.3  # evenly lit paper varies by at most this share of the contrast
BOX = 20  # pixels of a digit's longer side in an MNIST image
FINE = 8  # pixels become one of MNIST's where strokes are thickened
STROKE = 2.4  # MNIST's median width of strokes, in its pixels
FINE_STROKE = 1.6  # in MNIST's pixels; thinner strokes are thickened


def find_strokes(picture: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h2 w2"]:
    """The ink at each pixel of a picture of one digit, from 0 to 1; all 0 if it is blank.

    Returns the digit with a margin, so the size may differ from the picture's.

    Ink differs from its surroundings. Weak ink counts if it touches strong ink. If the picture
    holds something else besides, ruled lines, underlines, frames, specks and things that reach in
    from the border are removed. Strokes thinner than MNIST's usual ones are thickened. Ink in a
    small picture, up to SMALL pixels a side, keeps its grey levels; in a larger one it is black or
    white except at the edges, as MNIST's digits were before they were shrunk.
    """
    small = max(picture.shape) <= SMALL
    if np.ptp(picture) < CONTRAST or not (ink := _contrast(picture, small)).any():
        return np.zeros_like(picture)
    digit = _digit(ink)
    y, x = bounding_box(digit)
    shape, filled = digit[y, x].shape, ndimage.binary_fill_holes(digit[y, x])
    area, share = filled.sum(), digit.sum() / filled.sum()
    if area > SMALL * max(shape) and 0.7 < share < 0.997 and _is_rectangle(filled):
        # A sheet on a desk, or an image in a plot: goes on with what is on it.
        inside = ndimage.binary_erosion(filled, iterations=2 + max(shape) // 60)  # edges are soft
        _, nearest = ndimage.distance_transform_edt(~inside, return_indices=True)
        return find_strokes(picture[y, x][tuple(nearest)])
    pitch = max(shape) / BOX  # pixels for one of MNIST's
    margin = 2 + round(pitch)
    y, x = slice(y.start, y.stop + 2 * margin), slice(x.start, x.stop + 2 * margin)
    ink, digit = (np.pad(part, margin)[y, x] for part in (ink, digit))
    # Keep the soft edges of the digit, drop those of removed lines.
    own = (digit | (ink < 0.3)) & (ndimage.distance_transform_edt(~digit) <= max(1.0, pitch))
    ink = np.where(own, ink / ink[digit].max(), 0).astype(np.float32)
    if small and _stroke_width(ink) >= FINE_STROKE * pitch:
        return ink
    size = [round(side * FINE / pitch) for side in ink.shape[::-1]]
    fine = Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC)
    return _thickened(np.clip((np.asarray(fine) - 0.1) / 0.6, 0, 1))  # sharpened


def _is_rectangle(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether the mask fills most of the smallest rectangle around it, at any angle."""
    y = np.flatnonzero(mask.any(axis=1))  # each row's ends are enough
    x = np.array([mask[y].argmax(axis=1), mask.shape[1] - 1 - mask[y, ::-1].argmax(axis=1)])
    turned = np.multiply.outer(np.exp(1j * np.radians(np.arange(90))), x + 1j * y)
    area = np.ptp(turned.real, axis=(1, 2)) * np.ptp(turned.imag, axis=(1, 2))
    return bool(mask.sum() > 0.9 * area.min())


def bounding_box(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """The smallest rectangle around what is in the mask."""
    return ndimage.find_objects(mask.astype(np.int8))[0]


def _contrast(picture: Float32[np.ndarray, "h w"], small: bool) -> Float32[np.ndarray, "h w"]:
    """The ink, of which the strongest is 1; 0 everywhere if nothing stands out."""
    smooth = picture if small else ndimage.uniform_filter(picture, 3)  # against noise
    high = smooth >= (smooth.min() + smooth.max()) / 2
    # Paper is most of the picture, of its border or of its corners: of two of the three.
    shares = high.mean(), _border(high).mean(), high[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    sign, strong = (-1, ~high) if sum(shares) > 1.5 else (1, high)
    plain = ~ndimage.maximum_filter(strong, 1 + max(high.shape) // 20)  # without soft edges
    plain = plain if plain.any() else ~strong
    low, paper, upper = np.quantile(sign * smooth[plain], (0.05, 0.5, 0.95))
    even = small or upper - low < EVEN * (np.median(sign * smooth[strong]) - paper)
    if not even:  # paper is darkest in all of a window a quarter as wide
        reach = max(picture.shape) // 8
        paper = ndimage.grey_opening(sign * smooth, 2 * reach + 1, mode="nearest")
        paper = ndimage.uniform_filter(paper, 2 * (reach // 4) + 1, mode="nearest")
    ink = np.maximum(sign * picture - paper, 0)
    if sign < 0:  # in the shade there is less light to take away
        ink *= np.median(paper) / np.minimum(paper, -0.05)
    smooth = ink if small else ndimage.uniform_filter(ink, 3)
    level, noise = smooth.max(), 0 if even else NOISE * np.quantile(smooth, 0.25)
    return (ink / level if level >= max(CONTRAST, noise) else 0 * ink).astype(np.float32)


def _border(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _digit(ink: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where the digit is: parts that are no lines, no specks and, if there are any, no border."""
    mask, thick = ink >= 0.3, round(0.07 * min(ink.shape))
    rest = mask & ~_lines(mask, thick) & ~_lines(mask.T, thick).T
    mask = rest if rest.sum() > 0.1 * mask.sum() else mask
    parts, count = ndimage.label(mask, np.ones((3, 3)))  # also at a corner
    mass = np.bincount(parts[mask], ink[mask], count + 1)
    numbers = np.arange(count + 1)
    mass[~np.isin(numbers, parts[ink >= 0.5 * ink[mask].max()])] = 0  # weak ink alone
    inner = np.where(np.isin(numbers, _border(parts)), 0, mass)
    mass = inner if inner.max() > 0.1 * mass.max() else mass
    boxes = [(y.start, -y.stop, x.start, -x.stop) for y, x in ndimage.find_objects(parts)]
    edges = np.array([(0, 0, 0, 0), *boxes]).T
    height, width = -edges[0] - edges[1], -edges[2] - edges[3]
    outer = int((height * width * (mass > 0)).argmax())
    within = (edges > edges[:, outer, None]).all(axis=0) & (height > 0.4 * height[outer])
    if mass[within].any():  # the widest part is a frame around the digit
        mass[outer] = 0
    flat = width > 3.5 * height
    if mass[~flat].any():
        main = int(np.where(flat, 0, mass).argmax())
        mass[flat & (edges[0] > -edges[1, main] - 0.1 * height[main])] = 0  # an underline
    return _without_underline((mass > 0.1 * mass.max())[parts])


def _lines(mask: Bool[np.ndarray, "h w"], thick: float) -> Bool[np.ndarray, "h w"]:
    """Straight lines across from edge to edge, `thick` at most.

    Where a stroke crosses a line or lies along it, it is thicker than the line there, and stays.
    """
    lines, width = np.zeros_like(mask), mask.shape[1]
    runs = ndimage.label(mask, [[0, 1, 0]] * 3)[0]  # down a column
    y, x = np.nonzero(mask)
    run = np.bincount(runs.ravel())[runs[y, x]]
    thin = run <= max(1, thick)
    for slope in np.linspace(-0.15, 0.15, 61):
        rows = np.rint(y - slope * (x - width / 2)).astype(int)
        rows -= rows.min()
        covered, clear = np.bincount(rows), np.bincount(rows, thin)
        for row in np.flatnonzero((covered > 0.95 * width) & (clear > 0.3 * width)):
            limit = 1.5 * np.median(run[thin & (abs(rows - row) <= 1)]) + 1
            line = (run <= limit) & (abs(rows - row) <= limit)
            lines[y[line], x[line]] = True
    return lines


def _without_underline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without a line that the digit stands on, if the digit does not need it.

    The foot of a 2 or of a 1 stays: an underline is longer than the digit is high, sticks out on
    both sides of where the digit meets it, and is hardly a third of the ink.
    """
    y, x = bounding_box(mask)
    rest, side = np.zeros_like(mask), (x.stop - x.start) // 8
    rest[y, x] = mask[y, x] & ~_lines(mask[y, x], side)
    if rest.sum() < 0.63 * mask.sum() or not (mask & ~rest)[y.stop - 1 - side :].any():
        return mask
    top, _ = bounding_box(rest)
    foot = bounding_box(rest[top.stop - 1 - side // 4 : top.stop])[1]
    apart = foot.start - x.start > side and x.stop - foot.stop > side
    return rest if apart and top.stop - top.start <= x.stop - x.start else mask


def _stroke_width(ink: Float[np.ndarray, "h w"]) -> float:
    """The mean width of the strokes in pixels, also of a single one; there is paper around."""
    # A stroke has its width in ink and two edges, at each of which the ink goes from 0 to 1.
    edges = np.hypot(np.diff(ink, axis=0)[:, :-1], np.diff(ink, axis=1)[:-1]).sum()
    return float(2 * ink.sum() / edges)


def _thickened(ink: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h2 w2"]:
    """Strokes at least STROKE wide, where a pixel of MNIST's is FINE of these."""
    reach = max(0, round((STROKE * FINE - _stroke_width(np.pad(ink, 1))) / 2))
    away = np.arange(-reach, reach + 1)
    disc = away[:, None] ** 2 + away**2 <= (reach + 0.5) ** 2
    return ndimage.grey_dilation(np.pad(ink, reach), footprint=disc).astype(np.float32)
