"""What is around a digit in a picture and is none of it: desk, frame, plot, ruled lines."""

import math

import numpy as np
from jaxtyping import Bool, Float32

COARSE = 250  # pixels a side, about, at which a panel is looked for
PANEL = 0.08  # of the picture, at least, is a panel
RECTANGLE = 0.85  # of the smallest rectangle around it, at least, is filled by a panel
CONTENT = (0.002, 0.5)  # of a panel is what lies on it
HOLE = (0.4, 0.7)  # of a panel's sides, and of the rectangle around it, is what a thick 0 encloses
PLAIN = 0.02  # of that, at most, looks as the panel does
CROPPED = 0.35  # ... at most, where the panel reaches the border, as a tightly cropped 0 does
CLEAR = 0.3  # of a line, at least, nothing crosses
BAR = 0.15  # of the whole height is an underline thick, at most
STICKS_OUT = 0.05  # of its width, at least, beyond the rest on each side
FREE = 0.25  # of its width, at least, at each end has nothing on it
MOST_LINES = 40  # in each direction
THIN = 0.07  # of the picture's shorter side is a line thick, at most
SLOPES = np.linspace(-0.15, 0.15, 61)  # of lines, to the picture's edges
END = 0.03  # of the width are both ends of it, which it has to reach
SPAN = 0.9  # of the picture's width is covered by a line from edge to edge


def panel(picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h2 w2 3"]:
    """The inside of a sheet on a desk, of a frame, of an image in a plot; or the picture itself.

    A panel is a connected region of light or of dark that is about a rectangle, in any position,
    does not reach most of the picture's border, and has something of the other kind on it, as a
    digit is. (A thick 0 is no panel: an ellipse fills 0.79 of the rectangle around it, and what it
    encloses is a spot nearly as large.)
    """
    from scipy import ndimage

    step = max(1, min(round(max(picture.shape[:2]) / COARSE), *picture.shape[:2]))
    coarse = picture[::step, ::step] if step == 1 else _mean_blocks(picture, step)
    light = _is_light((coarse - slope(coarse)).mean(axis=2))
    found = [region for mask in (light, ~light) for region in _panels(mask)]
    if not found:
        return picture
    region = ndimage.binary_erosion(max(found, key=np.sum), iterations=2)
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    if not len(rows):
        return picture
    box = tuple(slice(at[0] * step, (at[-1] + 1) * step) for at in (rows, columns))
    inside = np.kron(region, np.ones((step, step), bool))[box]
    cut = picture[box]
    inside = inside[: cut.shape[0], : cut.shape[1]]
    y, x = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return cut[y, x]


def slope(picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """The plane that fits each colour best, without its mean."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in picture.shape[:2])
    y, x = y[:, None, None], x[None, :, None]
    across, along = ((picture * v).mean((0, 1)) / max((v * v).mean(), 1e-9) for v in (y, x))
    return y * across + x * along


def _mean_blocks(
    picture: Float32[np.ndarray, "h w 3"], step: int
) -> Float32[np.ndarray, "h2 w2 3"]:
    height, width = (side // step for side in picture.shape[:2])
    blocks = picture[: height * step, : width * step].reshape(height, step, width, step, 3)
    return blocks.mean(axis=(1, 3))


def _is_light(grey: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return grey > otsu(grey)


def otsu(values: np.ndarray) -> float:
    """The threshold that leaves the least variance within two classes (N. Otsu, 1979)."""
    counts, edges = np.histogram(values, 128)
    middles = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[::-1][1:]
    sums = np.cumsum(counts * middles)
    means = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (means[1] - means[0]) ** 2
    return float(edges[1:-1][between >= between.max() * (1 - 1e-9)].mean())


def _panels(mask: Bool[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "h w"]]:
    """The regions of the mask that are panels, each with what lies on it."""
    from scipy import ndimage

    parts = ndimage.label(mask)[0]
    sizes = np.bincount(parts.ravel())
    found = []
    for part in np.flatnonzero(sizes[1:] > PANEL * mask.size) + 1:
        region = parts == part
        border = np.concatenate([region[0], region[-1], region[:, 0], region[:, -1]])
        filled = ndimage.binary_fill_holes(region)
        content = 1 - sizes[part] / filled.sum()
        if (
            border.mean() < 0.5
            and CONTENT[0] < content < (CROPPED if border.any() else CONTENT[1])
            and filled.sum() > RECTANGLE * _rectangle(filled)
            and not _is_hole(filled & ~region, filled, mask)
        ):
            found.append(filled)
    return found


def _is_hole(
    content: Bool[np.ndarray, "h w"], panel: Bool[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> bool:
    """Whether what lies on a panel is one plain spot nearly as large: then it is a thick 0.

    (A 0 that is written on the panel is no plain spot: within it the panel is seen again.)
    """
    rows, columns = (np.flatnonzero(content.any(axis)) for axis in (1, 0))
    sides = np.ptp(rows) + 1, np.ptp(columns) + 1
    around = (np.ptp(np.flatnonzero(panel.any(axis))) + 1 for axis in (1, 0))
    wide = all(side > HOLE[0] * whole for side, whole in zip(sides, around, strict=True))
    plain = (content & mask).sum() < PLAIN * content.sum()
    return bool(wide and plain and content.sum() > HOLE[1] * sides[0] * sides[1])


def _rectangle(region: Bool[np.ndarray, "h w"]) -> float:
    """The area of the smallest rectangle around it, to about a degree."""
    from scipy import ndimage

    edge = np.argwhere(region & ~ndimage.binary_erosion(region))
    angles = np.deg2rad(np.arange(0, 90, 2))
    cos, sin = np.cos(angles), np.sin(angles)
    turned = edge @ np.stack([[cos, sin], [-sin, cos]]).reshape(2, 2 * len(angles))
    sides = np.ptp(turned, axis=0) + 1
    return float((sides[: len(angles)] * sides[len(angles) :]).min())


def without_lines(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without thin straight lines that go from edge to edge, across or down.

    Where a stroke crosses a line or lies along it, it is thicker than the line there, and stays.
    If hardly anything but lines were there, they are the digit, and the mask stays as it is.
    """
    lines = _lines(mask) | _lines(mask.T).T
    rest = mask & ~lines
    return rest if rest.sum() > 0.1 * mask.sum() else mask


def _lines(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels of lines across."""
    height, width = mask.shape
    lines = np.zeros_like(mask)
    most = max(1, round(THIN * min(mask.shape)))
    y, x = np.nonzero(mask)
    runs = _runs(mask)
    thin = runs[y, x] <= most
    for _ in range(MOST_LINES):  # the clearest first
        share, row, slope = _best_line(x, y, thin, height, width)
        if share < SPAN:
            break
        away = np.abs(y - row - slope * (x - width / 2))
        limit = 1.5 * np.median(runs[y, x][thin & (away <= 1)]) + 1
        gone = thin & (runs[y, x] <= limit) & (away <= limit)
        lines[y[gone], x[gone]] = True
        rest = ~gone & (away > 1)
        x, y, thin = x[rest], y[rest], thin[rest]
    return lines


def _best_line(
    x: np.ndarray, y: np.ndarray, thin: np.ndarray, height: int, width: int
) -> tuple[float, int, float]:
    """How much of the width the clearest line covers, its row in the middle, its slope.

    Of its pixels at x and y a share of CLEAR must be `thin`, and it must reach both edges.
    """
    best = (0.0, 0, 0.0)
    above = math.ceil(max(map(abs, SLOPES)) * width / 2) + 1  # a slope leads out of the picture
    size = height + 2 * above
    for slope in SLOPES:
        rows = y - np.rint(slope * (x - width / 2)).astype(int) + above
        sides = (rows[x < END * width], rows[x >= (1 - END) * width])
        ends = np.minimum(*(np.bincount(side, minlength=size) for side in sides))
        good = (ends > 0.5 * END * width) & (
            np.bincount(rows[thin], minlength=size) > CLEAR * width
        )
        covered = np.where(good, np.bincount(rows, minlength=size), 0)
        row = int(covered.argmax())
        if covered[row] / width > best[0]:
            best = (float(covered[row] / width), row - above, float(slope))
    return best


def _runs(mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """For each pixel of the mask the length of its run down the column."""
    padded = np.pad(mask.T, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(padded, axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    runs = np.zeros(mask.T.shape, int)
    lengths = ends[:, 1] - starts[:, 1]
    runs[mask.T] = np.repeat(lengths, lengths)
    return runs.T


def without_underline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask without a straight bar on which the rest stands and that is wider on both sides.

    (The foot of a 1 is such a bar, and without it a 1 is a 1.)
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return mask
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = inner.shape
    bottom = height - 1 - inner[::-1].argmax(axis=0)  # the lowest pixel of each column
    thick = np.where(inner.any(axis=0), _runs(inner)[bottom, np.arange(width)], 0)
    bar = (thick > 0) & (thick <= BAR * height) & (bottom > (1 - 2 * BAR) * height)
    if min(bar.argmin(), bar[::-1].argmin()) < FREE * width and not bar.all():
        return mask  # as a 2, whose stroke meets its foot at the end
    thickness = np.median(thick[bar])
    x = np.flatnonzero(bar)
    line = np.polyval(np.polyfit(x, bottom[bar], 1), np.arange(width))
    rest = inner & (np.arange(height)[:, None] <= line - thickness - 1)
    if not rest.any() or np.abs(bottom - line)[bar].max() > max(2.0, thickness):
        return mask
    at = np.flatnonzero(rest.any(axis=0))
    if min(at[0], width - 1 - at[-1]) < STICKS_OUT * width or rest.sum() < 0.2 * inner.sum():
        return mask
    cut = np.zeros_like(mask)
    cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = rest
    return cut
