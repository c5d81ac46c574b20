"""Which settings of a sweep are best: means over seeds, ranks, and the rungs of halving."""

import math
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxmnist.errors import UsageError


class Rung(NamedTuple):
    """A stage of successive halving: the best `settings` so far are trained up to `epochs`."""

    settings: int
    epochs: int


class Rank(NamedTuple):
    """A setting's place, measured by what was given to `rank`."""

    setting: int
    mean: float  # over the seeds that have not diverged; not a number where none is left
    deviation: float  # the sample's; not a number with fewer than two of them
    diverged: int
    p: float  # of a paired t-test against the first; not a number for the first


def halving_rungs(settings: int, epochs: int, factor: int) -> list[Rung]:
    """Successive halving: of the settings of each rung, one in `factor` goes on to the next.

    The last rung has all the epochs, each before it a factor fewer (Jamieson and Talwalkar 2016,
    https://arxiv.org/abs/1502.07943).

    >>> halving_rungs(9, 10, 3)
    [Rung(settings=9, epochs=1), Rung(settings=3, epochs=3), Rung(settings=1, epochs=10)]
    """
    if factor < 2:
        raise UsageError(f"--halving must be at least 2, not {factor}")
    steps = 0
    while factor ** (steps + 1) <= min(settings, epochs):
        steps += 1
    if not steps:
        raise UsageError(
            f"--halving {factor} needs at least {factor} settings and {factor} epochs, "
            f"not {settings} and {epochs}"
        )
    return [
        Rung(-(-settings // factor**step), epochs // factor ** (steps - step))
        for step in range(steps + 1)
    ]


def rank(
    values: Float[np.ndarray, "settings seeds"], diverged: Bool[np.ndarray, "settings seeds"]
) -> list[Rank]:
    """The settings from best to worst: fewest seeds that diverged, then the highest mean.

    `p` says how sure the order is: if two settings had the same mean, differences between
    them as large as over these seeds, which they share, would be seen with this probability
    (one-sided paired t-test against the best one, uncorrected for the number of settings).
    """
    kept = np.where(diverged, np.nan, values)
    mean, deviation = over_seeds(kept[..., None], diverged)
    ends = zip(diverged.sum(axis=1), np.nan_to_num(-mean[:, 0], nan=np.inf), strict=True)
    order = [index for _, index in sorted((end, index) for index, end in enumerate(ends))]
    best = kept[order[0]]
    return [
        Rank(
            index,
            float(mean[index, 0]),
            float(deviation[index, 0]),
            int(diverged[index].sum()),
            math.nan if index == order[0] else _paired_p(best, kept[index]),
        )
        for index in order
    ]


def over_seeds(
    values: Float[np.ndarray, "settings seeds epochs"], diverged: Bool[np.ndarray, "settings seeds"]
) -> tuple[Float[np.ndarray, "settings epochs"], Float[np.ndarray, "settings epochs"]]:
    """Mean and sample standard deviation over the seeds that have not diverged.

    They are not a number where no seed is left, and the deviation also where only one is.
    """
    left_out = np.broadcast_to(diverged[:, :, None], values.shape)
    kept = np.ma.masked_array(values, left_out)
    return kept.mean(axis=1).filled(np.nan), kept.std(axis=1, ddof=1).filled(np.nan)


def _paired_p(best: Float[np.ndarray, " seeds"], other: Float[np.ndarray, " seeds"]) -> float:
    from scipy import stats  # takes as long to import as all else here

    both = np.isfinite(best) & np.isfinite(other)
    if both.sum() < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # seeds that differ by the same amount
        p = stats.ttest_rel(best[both], other[both], alternative="greater").pvalue
    return 1.0 if math.isnan(p) else float(p)  # no difference at all
