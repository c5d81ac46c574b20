"""The skeletons of the synthetic digits: paths of a pen, each digit with a few ways to write it.

They are in skeletons.txt, and their format too.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

POINTS = 65  # of a path: about a pixel apart at most, too close to be seen as dots


class Skeletons(NamedTuple):
    """The table, ready to draw: S skeletons of P points, which are P - 1 steps of the pen."""

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
    table = Path(__file__).with_name("skeletons.txt").read_text(encoding="ascii")
    rows = [line.split("|") for line in table.splitlines() if not line.startswith("#")]
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
