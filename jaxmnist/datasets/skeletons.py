"""The skeletons of the synthetic digits: paths of a pen, each digit with a few ways to write it."""

import functools
from typing import NamedTuple

import numpy as np

# One skeleton a line: the digit, how often it is chosen relative to the digit's others, usually and
# among the digits that are added to MNIST (they show what MNIST, which is American, has little of),
# and the strokes as `x y` points in a 20x20 box, y downwards. A Catmull-Rom curve runs through the
# points, a point given twice is a corner, and `/` lifts the pen.
_SKELETONS = """
0 4 4 | 12 1, 7 1, 4 6, 4 14, 8 19, 13 18, 16 12, 15 5, 11 0, 8 1
0 2 2 | 14 3, 10 0, 5 4, 3 11, 6 18, 11 20, 16 15, 17 8, 14 2, 9 1
0 1 1 | 11 1, 7 2, 4 7, 4 14, 8 19, 13 18, 16 12, 16 6, 14 2, 12 1
0 1 1 | 13 5, 9 3, 6 7, 4 13, 7 19, 12 19, 16 13, 15 4, 11 0, 8 2, 9 5, 14 3
1 8 2 | 10 0, 10 7, 10 14, 10 20
1 2 2 | 6 5, 8 3, 11 0, 11 0, 11 10, 11 20
1 1 2 | 6 5, 8 3, 11 0, 11 0, 11 10, 11 20 / 5 20, 11 20, 17 20
1 1 1 | 10 0, 10 7, 10 14, 10 20 / 6 20, 10 20, 15 20
1 0 3 | 4 8, 8 4, 12 0, 12 0, 12 10, 12 20
1 0 3 | 2 11, 7 5, 12 0, 12 0, 12 10, 12 20
1 0 1 | 3 8, 7 4, 11 0, 11 0, 11 10, 11 20 / 4 20, 11 20, 18 20
2 3 3 | 3 5, 6 1, 11 0, 15 3, 14 8, 9 14, 3 20, 3 20, 10 19, 17 20
2 4 4 | 3 4, 7 0, 13 1, 15 5, 12 10, 7 16, 3 19, 1 17, 3 14, 8 16, 13 19, 18 18
2 2 2 | 4 3, 8 0, 13 2, 14 7, 10 14, 5 20, 5 20, 9 18, 13 20, 18 18
3 3 3 | 4 2, 9 0, 14 2, 14 6, 8 9, 8 9, 14 11, 16 15, 12 19, 7 20, 3 17
3 1 1 | 4 1, 15 0, 15 0, 9 8, 9 8, 14 10, 16 15, 12 20, 6 20, 3 17
3 2 2 | 4 3, 9 0, 14 3, 12 7, 9 10, 7 9, 9 8, 14 11, 15 16, 11 20, 4 18
4 6 6 | 5 0, 3 6, 3 10, 6 12, 11 11, 16 9 / 15 1, 14 10, 13 20
4 3 3 | 5 1, 4 7, 6 10, 11 9, 15 1, 15 1, 13 10, 12 20
4 1 1 | 13 20, 13 10, 13 0, 13 0, 7 7, 2 13, 2 13, 10 13, 18 13
4 2 2 | 12 1, 7 6, 3 12, 3 12, 10 12, 17 11 / 13 0, 13 10, 12 20
5 4 4 | 6 1, 5 4, 4 8, 4 8, 10 7, 15 10, 15 15, 10 20, 4 18 / 6 1, 11 1, 17 0
5 3 3 | 16 0, 11 1, 6 1, 6 1, 5 4, 5 8, 5 8, 11 8, 15 12, 13 18, 8 20, 3 18
5 2 2 | 17 1, 10 1, 6 4, 7 8, 12 11, 14 15, 10 19, 4 19
6 3 3 | 13 0, 7 5, 4 12, 5 18, 10 20, 15 17, 14 12, 9 11, 5 15
6 2 2 | 9 0, 6 6, 4 13, 6 19, 12 20, 15 16, 12 12, 8 13, 5 17
6 1 1 | 15 1, 10 2, 5 8, 4 15, 8 20, 13 19, 15 14, 11 10, 6 13
7 4 4 | 4 2, 10 2, 16 1, 16 1, 12 9, 9 20
7 2 2 | 4 2, 10 2, 16 1, 16 1, 12 9, 9 20 / 7 11, 11 10, 16 10
7 2 2 | 4 5, 5 2, 5 2, 10 2, 16 1, 16 1, 12 9, 9 20
7 2 2 | 3 4, 7 2, 12 1, 16 1, 15 5, 12 12, 10 20
8 4 4 | 14 3, 10 0, 6 3, 7 7, 13 12, 14 17, 10 20, 6 17, 7 12, 13 7, 14 3
8 2 2 | 10 9, 6 7, 6 2, 10 0, 14 3, 13 7, 10 9, 6 12, 5 16, 9 20, 14 18, 15 13, 10 9
8 2 2 | 15 3, 10 0, 5 4, 9 9, 14 14, 11 20, 5 17, 8 11, 14 5, 16 1
9 5 5 | 14 4, 10 1, 6 4, 7 9, 10 10, 14 6, 14 3, 14 3, 14 11, 13 20
9 2 2 | 14 4, 10 1, 6 4, 7 9, 11 10, 14 4, 14 4, 15 12, 12 18, 6 20
9 2 2 | 13 2, 9 1, 6 5, 7 9, 11 9, 14 5, 14 1, 14 1, 14 11, 14 20
9 2 2 | 14 5, 11 0, 7 2, 5 7, 9 10, 13 7, 15 2, 14 9, 12 20
9 0 4 | 14 4, 11 1, 8 3, 10 7, 14 5, 14 2, 14 2, 15 9, 13 16, 8 19, 2 19
"""

POINTS = 65  # of a path: about a pixel apart at most, too close to be seen as dots


class Skeletons(NamedTuple):
    """The table above, ready to draw: S skeletons of P points, which are P - 1 steps of the pen."""

    paths: np.ndarray  # float32 [S, P, 2], x and y from -1 to 1
    pen_down: np.ndarray  # float32 [S, P - 1], 0 where the step moves a lifted pen
    # float32 [10, S], each digit's cumulative distribution of skeletons: usually, and if added.
    chances: np.ndarray
    added_chances: np.ndarray


def _curve(controls: np.ndarray, steps: int = 24) -> np.ndarray:
    """Uniform Catmull-Rom curve [(K - 1) * steps + 1, 2] through `controls` [K, 2]."""
    ends = 2 * controls[[0, -1]] - controls[[1, -2]]
    p = np.vstack([ends[:1], controls, ends[1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    spans = [
        b + t / 2 * ((c - a) + t * ((2 * a - 5 * b + 4 * c - d) + t * (3 * (b - c) + d - a)))
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.vstack([*spans, controls[-1:]])


@functools.cache  # and not at import, which everybody pays for
def skeletons() -> Skeletons:
    """Every skeleton, sampled at points evenly spaced along its strokes."""
    rows = [line.split("|") for line in _SKELETONS.strip().splitlines()]
    paths, downs = zip(*(_sample(strokes) for _, strokes in rows), strict=True)
    digits, *weights = np.array([head.split() for head, _ in rows], float).T
    owner = np.equal.outer(np.arange(10), digits)
    sums = [np.cumsum(owner * column, axis=1) for column in weights]
    return Skeletons(
        np.array(paths, np.float32),
        np.array(downs, np.float32),
        *((chances / chances[:, -1:]).astype(np.float32) for chances in sums),
    )


def _sample(strokes: str) -> tuple[np.ndarray, list[float]]:
    """One skeleton's path [P, 2] and pen_down [P - 1]."""
    curves = [
        _curve(np.array([point.split() for point in stroke.split(",")], float))
        for stroke in strokes.split("/")
    ]
    ways = [np.cumsum(np.linalg.norm(np.diff(c, axis=0, prepend=c[:1]), axis=1)) for c in curves]
    lengths = np.array([way[-1] for way in ways])
    counts = np.maximum(np.round(POINTS * lengths / lengths.sum()), 2).astype(int)
    counts[0] += POINTS - counts.sum()
    path: list[np.ndarray] = []
    down: list[float] = []
    for curve, way, count in zip(curves, ways, counts, strict=True):
        even = np.linspace(0, way[-1], count)
        path.append(np.stack([np.interp(even, way, axis) for axis in curve.T], axis=1))
        down += [1.0] * (count - 1) + [0.0]
    return np.vstack(path) / 10 - 1, down[:-1]
