"""Which settings a sweep tries and which it calls the best."""

import dataclasses
import math
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxmnist.errors import UsageError
from jaxmnist.ranking import Rung, halving_rungs, over_seeds, rank
from jaxmnist.search import Range, make_settings, option_kinds, parse_choices, random_settings


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    hidden: tuple[int, ...] = (128, 64)
    size: int = 64
    fancy: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    optimizer: Literal["sgd", "adam"] = "sgd"
    rate: float = 0.1
    momentum: float = 0.0
    decay: Annotated[float | None, "optional"] = None

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum {self.momentum} is not in [0, 1)")
        if self.momentum and self.optimizer == "adam":
            raise UsageError("adam has no momentum")


GROUPS = [ModelOptions(), OptimizerOptions()]


def test_settings_of_a_grid():
    specs = ["rate=1e-3, 0.01", "--hidden=128,64;256;", "optimizer=sgd"]
    settings, left_out = make_settings(GROUPS, specs, [])
    assert left_out == []
    assert [setting["rate"] for setting in settings] == [0.001] * 3 + [0.01] * 3
    assert [setting["hidden"] for setting in settings[:3]] == [(128, 64), (256,), ()]
    assert settings[1] == {"rate": 0.001, "hidden": (256,), "optimizer": "sgd"}


def test_values_of_every_kind():
    specs = ["fancy=True,False", "decay=0.5,", "size=3"]
    settings, _ = make_settings(GROUPS, specs, [])
    assert settings[1] == {"fancy": True, "decay": None, "size": 3}
    assert settings[2] == {"fancy": False, "decay": 0.5, "size": 3}


def test_ranges_of_a_random_search():
    specs = ["rate=log:1e-4:1e-1", "size=32:256", "optimizer=sgd,adam"]
    ranges = parse_choices(option_kinds(GROUPS), specs, ranges=True)
    assert ranges["rate"] == Range(1e-4, 0.1, log=True, whole=False)
    assert ranges["size"] == Range(32, 256, log=False, whole=True)
    assert ranges["optimizer"] == ["sgd", "adam"]


def test_each_random_setting_with_each_of_the_grid():
    settings, _ = make_settings(GROUPS, ["size=1,2"], ["3", "rate=0:1"])
    assert len(settings) == 6
    assert [s["size"] for s in settings] == [1, 1, 1, 2, 2, 2]
    assert settings[0]["rate"] == settings[3]["rate"] != settings[1]["rate"]
    assert make_settings(GROUPS, ["size=1,2"], ["3", "rate=0:1"], 1)[0] != settings


def test_options_that_exclude_each_other_are_left_out():
    settings, left_out = make_settings(GROUPS, ["momentum=0,0.9", "optimizer=sgd,adam"], [])
    assert [tuple(s.values()) for s in settings] == [(0, "sgd"), (0, "adam"), (0.9, "sgd")]
    assert left_out == ["1 of 4 settings: adam has no momentum"]


@pytest.mark.parametrize(
    ("grid", "sample", "words"),
    [
        (["rate"], [], "OPTION=VALUE"),
        ([""], [], "OPTION=VALUE"),
        (["=1"], [], "OPTION=VALUE"),
        (["rate="], [], "rate= is no value of --rate"),
        (["rate=1,,2"], [], "rate= is no value"),
        (["rate=0.1,1e-1"], [], "value 1e-1 is given twice"),
        (["hidden=1,2;1,2"], [], "value 1,2 is given twice"),
        (["rate=1", "rate=2"], [], "rate is given twice"),
        (["speed=1"], [], "speed is not an option that can be swept$"),
        (["momentun=1"], [], "did you mean momentum"),
        (["size=1.5"], [], "size=1.5 is no value of --size"),
        (["fancy=yes"], [], "fancy=yes is no value"),
        (["optimizer=lion"], [], "optimizer=lion is no value"),
        (["momentum=0,1"], [], "momentum 1.0 is not in"),
        (["momentum=0.5", "optimizer=sgd,adam"], [], "adam has no momentum"),
        (["size=1:2"], [], "size=1:2 is no value"),
        ([f"rate={','.join(map(str, range(1, 2000)))}",
          f"size={','.join(map(str, range(1, 2000)))}"], [], "more than 1,000,000"),
        ([], ["rate=1:2"], "how many settings"),
        ([], ["5"], "how many settings"),
        ([], ["0", "rate=1:2"], "how many settings"),
        ([], ["10000000000", "rate=1:2"], "how many settings"),
        ([], ["3", "rate=1", "rate=1:2"], "rate is given twice"),
        ([], ["3", "rate=2:1"], "lower one first"),
        ([], ["3", "rate=1:1"], "lower one first"),
        ([], ["3", "rate=nan:1"], "lower one first"),
        ([], ["3", "rate=0:inf"], "lower one first"),
        ([], ["3", "optimizer=sgd:adam"], "two numbers"),
        ([], ["3", "hidden=1:2"], "two numbers"),
        ([], ["3", "rate=1:2:3"], "LOW:HIGH"),
        ([], ["3", "rate=log:1"], "LOW:HIGH"),
        ([], ["3", "rate=log:0:1"], "above 0"),
        ([], ["3", "rate=x:1"], "rate=x is no value"),
        ([], ["3", "optimizer=sgd,adam"], "only 2 different"),
        (["rate=1"], ["3", "rate=0:1"], "in the grid and in the random search"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept(grid, sample, words):
    with pytest.raises(UsageError, match=words):
        make_settings(GROUPS, grid, sample)


def test_an_option_is_given_once():
    with pytest.raises(UsageError, match="rate is swept, so --rate cannot be given"):
        make_settings([OptimizerOptions(rate=0.3)], ["rate=1,2"], [])


def test_random_settings_are_distributed_as_asked():
    choices = {
        "log": Range(1e-4, 1e-1, log=True, whole=False),
        "linear": Range(-1.0, 3.0, log=False, whole=False),
        "whole": Range(1, 6, log=False, whole=True),
        "whole_log": Range(1, 1000, log=True, whole=True),
        "list": ["a", "b"],
    }
    settings = random_settings(4000, choices)
    columns = {name: np.array([setting[name] for setting in settings]) for name in choices}
    exponents = np.log10(columns["log"].astype(float))
    assert stats.kstest(exponents, stats.uniform(-4, 3).cdf).pvalue > 1e-3
    assert stats.kstest(columns["linear"].astype(float), stats.uniform(-1, 4).cdf).pvalue > 1e-3
    counts = np.bincount(columns["whole"].astype(int))
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3
    assert {min(columns["whole_log"]), max(columns["whole_log"])} <= set(range(1, 1001))
    assert abs((columns["whole_log"] <= 31).mean() - 0.5) < 0.03  # half of the decades
    assert abs((columns["list"] == "a").mean() - 0.5) < 0.03
    assert type(settings[0]["whole"]) is int
    assert random_settings(4000, choices) == settings
    assert random_settings(4000, choices, seed=1) != settings


@given(st.floats(0, 1, exclude_max=True), st.booleans(), st.booleans())
def test_a_random_value_is_within_its_range_and_short(u, log, whole):
    value = Range(1, 3, log, whole).pick(u)
    assert 1 <= value <= 3
    assert float(f"{value:.4g}") == value


def test_rungs_of_halving():
    assert halving_rungs(27, 9, 3) == [Rung(27, 1), Rung(9, 3), Rung(3, 9)]
    assert halving_rungs(10, 5, 2) == [Rung(10, 1), Rung(5, 2), Rung(3, 5)]
    for wrong in ((2, 9, 3), (9, 2, 3), (9, 9, 1)):
        with pytest.raises(UsageError, match="--halving"):
            halving_rungs(*wrong)


def test_ranks():
    values = np.array([[0.5, 0.6, 0.7], [0.8, 0.8, 0.9], [0.9, np.nan, 0.9], [np.nan] * 3])
    diverged = np.isnan(values)
    ranks = rank(values, diverged)
    assert [r.setting for r in ranks] == [1, 0, 2, 3]  # what diverges at times comes last
    assert [r.diverged for r in ranks] == [0, 0, 1, 3]
    np.testing.assert_allclose(ranks[1][1:3], [0.6, 0.1])
    assert math.isnan(ranks[0].p)
    assert math.isnan(ranks[3].p)
    # Differences 0.3, 0.2, 0.2: mean 0.7 / 3, deviation 0.0577, t = 7 with two degrees of freedom.
    np.testing.assert_allclose(ranks[1].p, stats.t.sf(7, 2), rtol=1e-6)


def test_ranks_without_any_spread():
    same = np.full((2, 3), 0.5)
    assert rank(same, np.zeros((2, 3), bool))[1].p == 1.0
    apart = np.array([[0.75] * 3, [0.5] * 3])
    assert rank(apart, np.zeros((2, 3), bool))[1].p == 0.0
    assert math.isnan(rank(same[:, :1], np.zeros((2, 1), bool))[1].p)  # a single seed says nothing


def test_means_leave_out_what_diverged():
    inf = np.inf
    values = np.array([[[1.0, 9], [3, 11], [inf, np.nan]], [[5, 5], [inf, 1], [1, inf]]])
    diverged = np.array([[False, False, True], [False, True, True]])
    mean, deviation = over_seeds(values, diverged)
    np.testing.assert_array_equal(mean, [[2, 10], [5, 5]])
    # Two values 2 apart: 1 from their mean, and a sum of squares of 2 by one degree of freedom.
    np.testing.assert_allclose(deviation, [[2**0.5] * 2, [np.nan] * 2])
    mean, deviation = over_seeds(values, np.ones((2, 3), bool))
    assert np.isnan([mean, deviation]).all()
