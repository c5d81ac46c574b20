"""The strokes of a digit in a picture: dark on light or light on dark, a photo or a drawing."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from PIL import Image
from scipy import ndimage

SMALL = 64  # pixels a side; up to there a picture's grey levels are kept
CONTRAST = 0.06  # of ink and paper, at least; below it a picture is blank
NOISE = 4  # times the ink's lower quartile, which is noise, is at least its maximum
EVEN = 0.3  # of the contrast, at most, does paper vary that is lit evenly
WEAK = 0.3  # of the strongest ink; so much is ink where it is connected with
STRONG = 0.5  # ... as much as this
SHARP = (0.1, 0.7)  # in a large picture ink below the first is none, from the second on full
LINE = 0.07  # of the picture's shorter side is a ruled line thick, at most
SLOPES = np.linspace(-0.15, 0.15, 61)  # of ruled lines
END = 0.03  # of the width are both ends of a ruled line, which it has to reach
FLAT = 3.5  # times as wide as high is an underline that stands alone, at least
STICKS_OUT = 0.12  # of its width does an underline that touches the digit on both sides
BOX = 20  # pixels of a digit's longer side in an MNIST image
FINE = 8  # pixels become one of MNIST's where strokes are thickened
STROKE = 2.4  # of MNIST's pixels, the median width of its strokes
FINE_STROKE = 1.6  # of MNIST's pixels; thinner strokes are thickened
TOUCHING = np.ones((3, 3))  # pixels that touch at a corner are connected


def find_strokes(picture: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h2 w2"]:
    """How much ink is where in a picture of one digit, from 0 to 1; all 0 in a blank one.

    What comes back is the digit and a margin, smaller or larger than the picture.

    The ink is what differs from its surroundings. Weak ink counts where it is connected with strong
    ink. Left out, where there is something else, are ruled lines, underlines, frames, specks, and
    what reaches in from the border. Strokes thinner than MNIST's usual ones are thickened. Ink in a
    small picture, up to SMALL pixels a side, keeps its grey levels; in a larger one it is black or
    white but for the edges, as MNIST's digits were before they were shrunk.
    """
    small = max(picture.shape) <= SMALL
    ink = _contrast(picture, small) if np.ptp(picture) >= CONTRAST else np.zeros_like(picture)
    if not ink.any():
        return ink
    strong = _digit(ink)
    y, x = (slice(at.min(), at.max() + 1) for at in np.nonzero(strong))
    if _is_panel(strong[y, x]):
        edge = 2 + (y.stop - y.start) // 50  # which may be soft
        return find_strokes(picture[y, x][edge:-edge, edge:-edge])
    # Soft edges belong to the digit, but not those of something else, as of a removed line.
    other = (ink >= WEAK) & ~strong
    pitch = (np.ptp(np.nonzero(strong), axis=1).max() + 1) / BOX  # pixels for one of MNIST's
    away = ndimage.distance_transform_edt(~strong)
    near = away <= max(1.0, pitch)
    if other.any():
        near &= away < ndimage.distance_transform_edt(~other)
    ink = np.pad(np.where(near, ink, 0) / ink[near].max(), 1).astype(np.float32)
    if small and _stroke_width(ink) >= FINE_STROKE * pitch:
        return ink
    y, x = (slice(max(0, at.min() - 2), at.max() + 3) for at in np.nonzero(ink))
    part = Image.fromarray(np.pad(ink[y, x], 1 + round(pitch)))
    size = [max(1, round(side * FINE / pitch)) for side in part.size]
    ink = np.asarray(part.resize((size[0], size[1]), Image.Resampling.BICUBIC))
    return _thickened(np.clip((ink - SHARP[0]) / (SHARP[1] - SHARP[0]), 0, 1))


def _is_panel(part: Bool[np.ndarray, "h w"]) -> bool:
    """Whether it is a sheet on a desk, or an image in a plot: a full rectangle, something on it."""
    filled = ndimage.binary_fill_holes(part)
    return bool(
        min(part.shape) > SMALL
        and filled.mean() > 0.95
        and part.mean() > 0.7
        and part.sum() < 0.997 * filled.sum()
    )


def _contrast(picture: Float32[np.ndarray, "h w"], small: bool) -> Float32[np.ndarray, "h w"]:
    """The ink, of which the strongest is 1; 0 everywhere if nothing stands out."""
    smooth = picture if small else ndimage.uniform_filter(picture, 3)  # against noise
    sign, high = _ink_side(smooth)
    if small:  # the digit may fill it, but hardly all of its border
        paper, even = np.quantile(sign * _ring(smooth, 0), 0.25), True
    else:
        low, paper, upper = np.quantile(sign * smooth[~high], (0.05, 0.5, 0.95))
        even = upper - low < EVEN * (np.median(sign * smooth[high]) - paper)
    if not even:
        wide, reach = max(picture.shape) // 2, max(picture.shape) // 8
        sign, _ = _ink_side(smooth - ndimage.uniform_filter(smooth, wide, mode="nearest"))
        # Paper is darkest in all of a window a quarter as wide.
        paper = ndimage.grey_opening(sign * smooth, 2 * reach + 1, mode="nearest")
        paper = ndimage.uniform_filter(paper, 2 * (reach // 4) + 1, mode="nearest")
    ink = np.maximum(sign * picture - paper, 0)
    if sign < 0:  # in the shade there is less light to take away
        ink *= np.median(paper) / np.minimum(paper, -0.05)
    smooth = ink if small else ndimage.uniform_filter(ink, 3)
    level, noise = smooth.max(), 0 if even else NOISE * np.quantile(smooth, 0.25)
    return (ink / level if level >= max(CONTRAST, noise) else 0 * ink).astype(np.float32)


def _ink_side(values: Float32[np.ndarray, "h w"]) -> tuple[int, Bool[np.ndarray, "h w"]]:
    """1 if ink is what is high, -1 if it is what is low, and where it is, roughly."""
    high = values >= (values.min() + values.max()) / 2
    return (-1, ~high) if _surrounds(high) > _surrounds(~high) else (1, high)


def _surrounds(mask: Bool[np.ndarray, "h w"]) -> float:
    """How much paper is like this: much of the picture, of its border, its corners, in pieces."""
    rings = np.mean([_ring(mask, depth).mean() for depth in (0, 0.02, 0.04, 0.06, 0.08)])
    sizes = np.bincount(ndimage.label(mask, TOUCHING)[0].ravel())[1:]
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    return float(mask.mean() + rings + corners + 0.2 * (sizes > 0.02 * mask.size).sum())


def _ring(values: np.ndarray, depth: float) -> np.ndarray:
    """The values on the rectangle that lies within the border by this share of the sides."""
    y, x = (int(depth * side) for side in values.shape)
    inner = values[y : values.shape[0] - y, x : values.shape[1] - x]
    return np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])


def _digit(ink: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where the digit is: parts that are no lines, no specks and, if there are any, no border."""
    rest = _without_lines(ink >= WEAK)
    parts, count = ndimage.label(rest if ink[rest].max() >= STRONG else ink >= WEAK, TOUCHING)
    mass = np.bincount(parts.ravel(), ink.ravel(), count + 1)
    mass[np.bincount(parts[ink >= STRONG], minlength=count + 1) == 0] = 0
    mass[0] = 0  # the rest of the picture
    inner = mass.copy()
    inner[_ring(parts, 0)] = 0
    if inner.max() > 0.1 * mass.max():
        mass = inner
    boxes = ndimage.find_objects(parts)
    top, bottom, left, right = np.array([(y.start, y.stop, x.start, x.stop) for y, x in boxes]).T
    height = bottom - top
    outer = int((height * (right - left) * (mass[1:] > 0)).argmax())
    within = (top > top[outer]) & (bottom < bottom[outer]) & (left > left[outer])
    within &= (right < right[outer]) & (height > 0.4 * height[outer]) & (mass[1:] > 0)
    if within.any():  # the widest part is a frame around the digit
        mass[outer + 1] = 0
    flat = right - left > FLAT * height
    if mass[1:][~flat].any():
        main = int(np.where(flat, 0, mass[1:]).argmax())
        mass[1:][flat & (top > bottom[main] - 0.1 * height[main])] = 0
    return _without_underline((mass > 0.1 * mass.max())[parts])


def _without_lines(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without thin straight lines that go from edge to edge, across or down.

    Where a stroke crosses a line or lies along it, it is thicker than the line there, and stays.
    If hardly anything but lines were there, they are the digit, and the mask stays as it is.
    """
    rest = mask & ~_lines(mask) & ~_lines(mask.T).T
    return rest if rest.sum() > 0.1 * mask.sum() else mask


def _lines(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels of lines across."""
    lines, runs, width = np.zeros_like(mask), _runs(mask), mask.shape[1]
    y, x = np.nonzero(mask)
    thin = runs[y, x] <= max(1, round(LINE * min(mask.shape)))
    for slope in SLOPES:
        rows = np.rint(y - slope * (x - width / 2)).astype(int)
        rows -= rows.min()
        left, right, clear, covered = (
            np.bincount(rows, part, rows.max() + 1)
            for part in (x < END * width, x >= (1 - END) * width, thin, x >= 0)
        )
        whole = (np.minimum(left, right) > 0.5 * END * width) & (clear > 0.3 * width)
        for row in np.flatnonzero(whole & (covered > 0.9 * width)):
            limit = 1.5 * np.median(runs[y, x][thin & (abs(rows - row) <= 1)]) + 1
            gone = thin & (runs[y, x] <= limit) & (abs(rows - row) <= limit)
            lines[y[gone], x[gone]] = True
    return lines


def _runs(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """For each pixel of the mask the length of its run down the column."""
    parts = ndimage.label(mask, [[0, 1, 0]] * 3)[0]
    return np.bincount(parts.ravel())[parts]


def _without_underline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without a straight line on which the digit stands, if the digit does not need it.

    The foot of a 2 or of a 1 stays: an underline is longer than the digit is high and sticks out on
    both sides.
    """
    y, x = (slice(at.min(), at.max() + 1) for at in np.nonzero(mask))
    inner = mask[y, x]
    height, width = inner.shape
    if width < max(8, 0.8 * height):
        return mask
    low = height - 1 - inner[::-1].argmax(axis=0)  # the lowest pixel of each column
    ends = np.r_[: max(2, int(STICKS_OUT * width)), -max(2, int(STICKS_OUT * width)) : 0]
    slope, start = np.polyfit(np.arange(width)[ends], low[ends], 1)
    line, runs = start + slope * np.arange(width), _runs(inner)[low[ends], np.arange(width)[ends]]
    thick = np.median(runs)
    straight = np.abs(low - line) <= max(1.5, thick)
    rest = inner & (np.arange(height)[:, None] <= line - 1.5 * thick - 1)
    tall = np.ptp(np.flatnonzero(rest.any(axis=1))) if rest.any() else 0
    digit = rest.sum() > 0.2 * inner.sum() and tall <= width and not rest[:, ends].any()
    thin = runs.max() <= 0.15 * width and abs(slope) <= SLOPES[-1] and straight.mean() >= 0.95
    if not (digit and thin):
        return mask
    cut = np.zeros_like(mask)
    cut[y, x] = rest
    return cut


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
