"""A sweep as a whole: its models, what identifies it in its file, and which settings are best."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxmnist.datasets.synthetic import ADDED_VERSION
from jaxmnist.errors import UsageError
from jaxmnist.ranking import Rank, Rung, halving_rungs, rank
from jaxmnist.runs.sweep_file import Models, Results
from jaxmnist.search import MAX_MODELS, Setting, option_kinds, parse_option

# The options that a compiled program takes as arguments, so that their values share one program.
NUMBERS = ("learning_rate", "momentum", "weight_decay", "warmup", "augment")
SCORES = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")


class Plan(NamedTuple):
    """A sweep. Model m has the setting m // seeds and the seed m % seeds."""

    options: Setting  # all that a training has; a setting's values take their place
    settings: list[Setting]  # those that share a program stand next to each other
    seeds: int
    rungs: list[Rung]  # of successive halving; without it a single one

    @property
    def scores(self) -> list[str]:
        """The columns of metrics."""
        return [name for name in SCORES if self.options["validation"] or "valid" not in name]

    @property
    def ranked_by(self) -> str:
        """The column by which settings are ranked."""
        return "validation_accuracy" if self.options["validation"] else "test_accuracy"

    @property
    def columns(self) -> list[str]:
        """The columns of the results file."""
        return ["model", *self.settings[0], "seed", "epoch", *self.scores, "diverged"]

    @property
    def models(self) -> int:
        """How many models there are."""
        return len(self.settings) * self.seeds

    def epochs(self, model: int, rung: Rung) -> int:
        """How many epochs the model has been trained for when the rung ends."""
        return self.settings[model // self.seeds].get("epochs", rung.epochs)


def make_plan(
    options: Setting, settings: Sequence[Setting], seeds: int, halving: int | None = None
) -> Plan:
    """The plan, with its settings in the order in which they are trained.

    Args:
        options: all that a training has.
        settings: what takes their place, of `make_settings`.
        seeds: how many seeds each setting is trained with.
        halving: with successive halving, of how many settings one goes on.

    Raises:
        UsageError: there are too many models, or an option cannot be swept here.
    """
    if len(settings) * seeds > MAX_MODELS:
        raise UsageError(
            f"{len(settings):,} settings x {seeds:,} seeds are more than {MAX_MODELS:,} models"
        )
    for name in ("validation", "synthetic_digits"):
        if name in settings[0]:
            raise UsageError(f"{name} cannot be swept: all models share their images")
    if halving is not None and "epochs" in settings[0]:
        raise UsageError("epochs cannot be swept with --halving, which decides how many there are")
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(program_key(setting), []).append(setting)
    rungs = [Rung(len(settings), options["epochs"])]
    if halving is not None:
        rungs = halving_rungs(len(settings), options["epochs"], halving)
    return Plan(options, list(itertools.chain(*groups.values())), seeds, rungs)


def program_key(setting: Setting) -> tuple[Any, ...]:
    """What settings must share to share a program.

    A number that is 0 may leave a part of the program out, momentum for instance, so it does not
    share one with other numbers; that keeps a model to the bit what it is when trained alone.
    """
    return tuple(bool(v) if is_argument(name, v) else v for name, v in setting.items())


def is_argument(name: str, value: Any) -> bool:
    """Whether a program takes the option as an argument."""
    return name in NUMBERS and value is not None


def header(plan: Plan, data: str, environment: Setting) -> Setting:
    """What identifies the sweep in its file: all that its numbers depend on.

    Args:
        plan: the sweep.
        data: which dataset it is.
        environment: JAX's "flags" and the packages' "versions".
    """
    texts = [{name: as_text(value) for name, value in s.items()} for s in plan.settings]
    return {
        "models": plan.models,
        "seeds": plan.seeds,
        "ends": [rung.epochs for rung in plan.rungs],
        "rungs": [rung.settings for rung in plan.rungs],
        "settings": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "options": {
            name: "swept" if name in texts[0] else as_text(value)
            for name, value in plan.options.items()
        },
        "data": data,
        "part": None,  # which, from 1, of how many, in the file of a part
        **({"added_digits": ADDED_VERSION} if plan.options.get("synthetic_digits") else {}),
        **environment,
    }


def plan_of(results: Results, groups: Sequence[Any]) -> Plan:
    """The plan of a sweep of which all models are there; the groups are those of its options."""
    head, seeds, kinds = results.header, results.header["seeds"], option_kinds(groups)
    names = results.columns[1 : results.columns.index("seed")]
    first = [results.models[model][0] for model in range(0, head["models"], seeds)]
    settings = [{name: parse_option(kinds, name, row[name]) for name in names} for row in first]
    rungs = [Rung(*pair) for pair in zip(head["rungs"], head["ends"], strict=True)]
    fixed = {name: text for name, text in head["options"].items() if name not in names}
    options = {name: parse_option(kinds, name, text) for name, text in fixed.items()}
    return Plan(options, settings, seeds, rungs)


def standings(plan: Plan, models: Models) -> list[tuple[Rung, Rank]]:
    """All settings from best to worst; those that reached a later rung come first.

    A p is given within the last rung only, where the settings have been trained equally long.
    """
    settings = list(range(len(plan.settings)))
    places: list[tuple[Rung, Rank]] = []
    for number, rung in enumerate(plan.rungs):
        ranks = rank_settings(plan, models, settings, rung)
        last = number + 1 == len(plan.rungs)
        kept = 0 if last else plan.rungs[number + 1].settings
        dropped = [r if last else r._replace(p=math.nan) for r in ranks[kept:]]
        places = [(rung, r) for r in dropped] + places
        settings = sorted(r.setting for r in ranks[:kept])
    return places


def rank_settings(plan: Plan, models: Models, settings: Sequence[int], rung: Rung) -> list[Rank]:
    """The settings from best to worst at the end of the rung."""
    ranks = rank(*scores_at(plan, models, settings, rung, plan.ranked_by))
    return [r._replace(setting=settings[r.setting]) for r in ranks]


def scores_at(
    plan: Plan, models: Models, settings: Sequence[int], rung: Rung, name: str
) -> tuple[Float[np.ndarray, "settings seeds"], Bool[np.ndarray, "settings seeds"]]:
    """A score of each model at the end of the rung, and which models have diverged."""
    numbers = [range(i * plan.seeds, (i + 1) * plan.seeds) for i in settings]
    rows = [[models[m][plan.epochs(m, rung) - 1] for m in of_one] for of_one in numbers]
    values = [[float(row[name] or "nan") for row in of_one] for of_one in rows]
    diverged = [[row["diverged"] == "1" for row in of_one] for of_one in rows]
    return np.array(values), np.array(diverged)


def as_text(value: Any) -> str:
    """An option's value as it is written in a grid and in the results file."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
