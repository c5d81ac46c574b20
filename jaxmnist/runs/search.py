"""What a search trains, and what it finds.

Settings are all combinations of a grid, random ones, or what Optuna's TPE proposes. Of a grid and
of random ones every worker computes the same list from the same options.
"""

import csv
import io
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from jaxmnist.errors import UsageError
from jaxmnist.files import atomic_write

Setting = dict[str, Any]  # option -> its value as Optuna has it: a number, a text
Key = frozenset[tuple[str, Any]]  # of a setting
Curves = dict[str, list[Any]]  # score -> an epoch's number; None where not all are finite

optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of each trial and study
MAX_SETTINGS = 100_000  # more are a mistyped number


class Search:
    """Which settings are trained, and with how many seeds.

    Args:
        asked: has `seeds`; `grid`, texts like "learning_rate=0.1,0.01" and "hidden=128,64;256"; or
            `sample`, a number and such texts or ranges like "learning_rate=log:1e-4:1e-1",
            `sampler`, "random" or "tpe", and `sample_seed`.
        groups: dataclasses with all options of a training.
        convert: `convert(field, text) -> value`; a ValueError where it is none.

    Raises:
        UsageError: an option or a value is unknown, refused or given twice.
    """

    def __init__(self, asked: Any, groups: Sequence[Any], convert: Callable[..., Any]) -> None:
        self.groups, self.convert = groups, convert
        self.fields = {f.name: f for group in groups for f in fields(group)}
        self.seeds, self.sample_seed = asked.seeds, asked.sample_seed
        self.space: dict[str, Any] = {}  # option -> Optuna's distribution
        self.settings: list[Setting] | None = None  # if TPE proposes them
        self.left_out = Counter[str]()  # reason -> how many settings
        number, *specs = asked.sample or ("0", *asked.grid)
        sampled, values = bool(asked.sample), dict[str, list[Any]]()
        if not specs or (asked.grid and sampled) or not number.isdecimal():
            raise UsageError("name settings by --grid OPTION=VALUE,VALUE or --sample N OPTION=A:B")
        for spec in specs:
            name, equals, text = spec.partition("=")
            name = name.strip().lstrip("-").replace("-", "_")
            if not equals or name in self.space:
                raise UsageError(f"{spec}: name each option once, as OPTION=VALUE,VALUE")
            self.space[name], values[name] = self._parse(name, text, sampled)
        self.count = int(number) if sampled else math.prod(map(len, values.values()))
        if not 0 < self.count <= MAX_SETTINGS:
            raise UsageError(f"there can be 1 to {MAX_SETTINGS:,} settings, not {self.count:,}")
        # Two searches that differ in this cannot share a study.
        self.how = f"{asked.sampler} {asked.sample_seed} {sorted(specs)}" if sampled else "grid"
        if not sampled:
            grid = (dict(zip(values, v, strict=True)) for v in itertools.product(*values.values()))
            self.settings = self._possible(grid, self.count)
        elif asked.sampler == "random":
            self.settings = self.draw(optuna.samplers.RandomSampler(self.sample_seed), self.count)
        if self.settings is not None:
            self.count = len(self.settings)
        if not self.count:
            raise UsageError(f"no setting is possible: {next(iter(self.left_out))}")

    def options(self, setting: Setting) -> dict[str, Any]:
        """All options of a training with this setting; a ValueError if they exclude each other."""
        values = {name: self._convert(name, str(value)) for name, value in setting.items()}
        groups = [replace(g, **{n: values[n] for n in vars(g) if n in values}) for g in self.groups]
        return {name: value for group in groups for name, value in vars(group).items()}

    def trial(self, setting: Setting, **about: Any) -> FrozenTrial:
        """A trial of Optuna's with this setting."""
        return create_trial(params=setting, distributions=self.space, **about)

    def draw(self, sampler: Any, count: int, trials: Sequence[FrozenTrial] = ()) -> list[Setting]:
        """Up to `count` new settings of a sampler that has seen the trials."""
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in trials:
            diverged = trial.state == TrialState.FAIL  # counts as the worst, so that it is avoided
            study.add_trial(self.trial(trial.params, value=0.0) if diverged else trial)
        drawn = (study.ask(self.space).params for _ in range(100 * count))
        return self._possible(drawn, count, {key(trial.params) for trial in trials})

    def _possible(self, settings: Iterable[Setting], count: int, known: Any = ()) -> list[Setting]:
        """The first `count` distinct settings that are valid and not in `known`."""
        found: dict[Key, Setting] = {}
        for setting in settings:
            try:
                self.options(setting)
            except (UsageError, ValueError) as error:
                self.left_out[str(error)] += 1
                continue
            if key(setting) not in known:
                found.setdefault(key(setting), setting)
            if len(found) == count:
                break
        return list(found.values())

    def _convert(self, name: str, text: str) -> Any:
        try:
            return self.convert(self.fields[name], text)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _parse(self, name: str, text: str, sampled: bool) -> tuple[Any, list[Any]]:
        """The distribution of an option, and its values or the ends of its range.

        In a grid other values can join later: any number, any text of an option that lists them.
        """
        if name not in self.fields:
            raise UsageError(f"{name} cannot be searched; these can: {', '.join(self.fields)}")
        kind: Any = self.fields[name].type
        make: Any = IntDistribution if kind is int else FloatDistribution
        if sampled and ":" in text:
            ends = [self._convert(name, end) for end in text.removeprefix("log:").split(":")]
            try:
                return make(*ends, log=text.startswith("log:")), ends
            except (TypeError, ValueError):
                what = "a range is LOW:HIGH or, above 0, log:LOW:HIGH"
                raise UsageError(f"{name}={text}: {what}") from None
        several = get_origin(kind) is tuple
        values = [self._convert(name, part.strip()) for part in text.split(";" if several else ",")]
        values = [",".join(map(str, value)) if several else value for value in values]
        if len(set(values)) < len(values):
            raise UsageError(f"{name}={text}: a value is given twice")
        if sampled or several:
            return CategoricalDistribution(values), values
        if get_origin(kind) is Literal:
            return CategoricalDistribution(get_args(kind)), values
        return make(min(values), max(values)), values


def key(setting: Setting) -> Key:
    """What is equal for equal settings."""
    return frozenset(setting.items())


@dataclass
class Result:
    """A setting, the curves of its seeds that are trained, and its trial in the study."""

    setting: Setting
    members: dict[int, Curves] = field(default_factory=dict)
    claim: Any = field(default=None, compare=False)

    @property
    def diverged(self) -> int:
        """How many seeds have a loss or a parameter that is not finite."""
        return sum(None in curves["train_loss"] for curves in self.members.values())

    def score(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of the last values of the seeds that have not diverged.

        They are not numbers where no seed is left, and the deviation also where only one is.
        """
        values = [c[name][-1] for c in self.members.values() if None not in c["train_loss"]]
        mean = math.fsum(values) / len(values) if values else math.nan
        return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def curves_of(results: Mapping[str, Any], i: int) -> Curves:
    """The curves of model i of a chunk."""
    scores = {"train_loss": np.mean(results["loss"][i], axis=-1, dtype="float64")}
    for name in sorted(name for name in results if name.startswith("test_")):
        scores |= {f"{name[5:]}_{kind}": values[i] for kind, values in results[name].items()}
    finite = np.all([np.isfinite(v) for name, v in scores.items() if "loss" in name], axis=0)
    finite[-1] &= results["finite"][i]
    pairs = {name: zip(values, finite, strict=True) for name, values in scores.items()}
    return {name: [float(v) if ok else None for v, ok in of] for name, of in pairs.items()}


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Write a row for each model and epoch: the setting, the seed, the epoch, its scores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for result in results:
        for seed, curves in sorted(result.members.items()):
            if not text.tell():
                writer.writerow([*result.setting, "seed", "epoch", *curves])
            for epoch, scores in enumerate(zip(*curves.values(), strict=True), 1):
                writer.writerow([*result.setting.values(), seed, epoch, *scores])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def plot(directory: Path, results: Sequence[Result], space: dict[str, Any], ranked_by: str) -> None:
    """Draw Optuna's plots: history, slices and, from ten settings on, importances."""
    from matplotlib import pyplot, rc_context
    from optuna.visualization import matplotlib as optuna_plots

    pyplot.switch_backend("agg")
    study, space = optuna.create_study(direction="maximize"), dict(space)
    for name, of_name in space.items():  # a wide range of numbers gets a logarithmic axis
        if isinstance(of_name, FloatDistribution) and 0 < 10 * of_name.low <= of_name.high:
            space[name] = FloatDistribution(of_name.low, of_name.high, log=True)
    good = [result for result in results if not result.diverged]
    for result in good:
        value = result.score(ranked_by)[0]
        study.add_trial(create_trial(value=value, params=result.setting, distributions=space))
    names = ["optimization_history", "slice"]
    names += ["param_importances"] if len(good) >= 10 and len(space) > 1 else []
    # Optuna changes matplotlib's style globally and triggers its own warnings: undo both.
    with rc_context(), warnings.catch_warnings(action="ignore"):
        for name in names:
            make: Any = getattr(optuna_plots, f"plot_{name}")
            axes = np.ravel(make(study, target_name=ranked_by))
            for axis in axes:  # or the texts of a choice cover each other
                axis.tick_params("x", labelrotation=45)
            figure = axes[0].figure
            figure.savefig(directory / f"{name}.png", bbox_inches="tight")
            pyplot.close(figure)
