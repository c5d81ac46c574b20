"""A search over options is a study of Optuna's; a trial is a setting, trained with all its seeds.

Training is deterministic: a result that is computed twice is the same result. So workers share a
study without heartbeats. Each claims settings that nobody has claimed, by one write that makes a
running trial; one that finds none computes again what is still running. The first result counts.
"""

import contextlib
import csv
import inspect
import io
import itertools
import math
import os
import random
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from jaxmnist.data import Dataset
from jaxmnist.errors import JaxmnistError, UsageError
from jaxmnist.evaluation import evaluate
from jaxmnist.files import atomic_write
from jaxmnist.optimizers import make_optimizer
from jaxmnist.population import Population, Run, compile_population, run_chunks
from jaxmnist.runs.directory import differences
from jaxmnist.runs.machine import free_memory
from jaxmnist.runs.setup import make_training
from jaxmnist.training import TrainState, init_state, train
from jaxmnist.types import Metrics

Setting = dict[str, Any]  # option -> its value as Optuna has it: a number, a text
Key = frozenset[tuple[str, Any]]  # of a setting
Curves = dict[str, list[Any]]  # score -> an epoch's number; None where not all are finite

optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of each trial and study
MAX_SETTINGS = 100_000  # more are a mistyped number
PROPOSALS = 8  # that TPE makes at once; with more it learns too late from their results


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
        self.seeds, self.seed = asked.seeds, asked.sample_seed
        self.space: dict[str, Any] = {}  # option -> Optuna's distribution
        self.settings: list[Setting] | None = None  # if TPE proposes them
        self.left_out: dict[str, int] = {}  # why, and how many
        number, *specs = asked.sample or ("0", *asked.grid)
        if not specs or (asked.grid and asked.sample) or not number.isdecimal():
            raise UsageError("name settings by --grid OPTION=VALUE,VALUE or --sample N OPTION=A:B")
        values: dict[str, list[Any]] = {}
        for spec in specs:
            name, equals, text = spec.partition("=")
            name = name.strip().lstrip("-").replace("-", "_")
            if not equals or name in self.space:
                raise UsageError(f"{spec}: name each option once, as OPTION=VALUE,VALUE")
            self.space[name], values[name] = self._parse(name, text, bool(asked.sample))
        self.count = int(number) if asked.sample else math.prod(map(len, values.values()))
        if not 0 < self.count <= MAX_SETTINGS:
            raise UsageError(f"there can be 1 to {MAX_SETTINGS:,} settings, not {self.count:,}")
        # Two searches that differ in this cannot share a study.
        self.how = f"{asked.sampler} {self.seed} {sorted(specs)}" if asked.sample else "grid"
        if not asked.sample:
            grid = (dict(zip(values, v, strict=True)) for v in itertools.product(*values.values()))
            self.settings = self._possible(grid, self.count)
        elif asked.sampler == "random":
            self.settings = self.draw(optuna.samplers.RandomSampler(self.seed), self.count, {})
        self.count = self.count if self.settings is None else len(self.settings)
        if not self.count:
            raise UsageError(f"no setting is possible: {next(iter(self.left_out))}")

    def options(self, setting: Setting) -> dict[str, Any]:
        """All options of a training with this setting; a UsageError if they exclude each other."""
        values = {name: self._value(name, str(value)) for name, value in setting.items()}
        groups = [replace(g, **{n: values[n] for n in vars(g) if n in values}) for g in self.groups]
        return {name: value for group in groups for name, value in vars(group).items()}

    def trial(self, setting: Setting, **about: Any) -> FrozenTrial:
        """A trial of Optuna's with this setting."""
        return create_trial(params=setting, distributions=self.space, **about)

    def draw(self, sampler: Any, count: int, claims: Mapping[Key, FrozenTrial]) -> list[Setting]:
        """Up to `count` settings of a sampler, which learns from the claims, and none of these.

        One that diverged counts as the worst, so that it is avoided.
        """
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for claim in claims.values():
            value = None if claim.state == TrialState.RUNNING else claim.value or 0.0
            state = TrialState.RUNNING if value is None else TrialState.COMPLETE
            study.add_trial(self.trial(claim.params, state=state, value=value))

        drawn = (study.ask(self.space).params for _ in range(100 * count))
        return self._possible(drawn, count, claims)

    def _possible(self, settings: Iterable[Setting], count: int, known: Any = ()) -> list[Setting]:
        """The first `count` that are possible, different and not known."""
        found: dict[Key, Setting] = {}
        for setting in settings:
            try:
                self.options(setting)
            except UsageError as error:
                self.left_out[str(error)] = self.left_out.get(str(error), 0) + 1
                continue
            if _key(setting) not in known:
                found.setdefault(_key(setting), setting)
            if len(found) == count:
                break
        return list(found.values())

    def _value(self, name: str, text: str) -> Any:
        if name not in self.fields:
            raise UsageError(f"{name} is none of what can be searched: {', '.join(self.fields)}")
        try:
            return self.convert(self.fields[name], text)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _parse(self, name: str, text: str, sampled: bool) -> tuple[Any, list[Any]]:
        """The distribution of an option, and its values or the ends of its range.

        In a grid other values can join later: any number, any text of an option that lists them.
        """
        ranged, log = sampled and ":" in text, sampled and text.startswith("log:")
        kind: Any = self.fields[name].type if name in self.fields else None
        several = get_origin(kind) is tuple
        parts = text.removeprefix("log:" * log).split(":" if ranged else ";" if several else ",")
        values = [self._value(name, part.strip()) for part in parts]
        values = [",".join(map(str, value)) if several else value for value in values]
        numbers = not isinstance(values[0], str)
        make: Any = IntDistribution if isinstance(values[0], int) else FloatDistribution
        if ranged:
            if len(parts) != 2 or not numbers or values[0] >= values[1] or (log and values[0] <= 0):
                raise UsageError(f"{name}={text}: a range is LOW:HIGH or, above 0, log:LOW:HIGH")
            return make(*values, log=log), values
        if len(set(values)) < len(values):
            raise UsageError(f"{name}={text}: a value is given twice")
        if numbers and not sampled:
            return make(min(values), max(values)), values
        return CategoricalDistribution(values if several or sampled else get_args(kind)), values


def open_study(where: str | None) -> optuna.Study:
    """The study in a file, in a database, or in this process; it is made if there is none.

    Args:
        where: the path of a journal, which may be on a file system that machines share, or the URL
            of a database, as SQLAlchemy takes it; "#" and a name may follow. Or None.

    Raises:
        JaxmnistError, OSError: it cannot be opened.
    """
    place, _, name = (where or "").partition("#")
    patience = {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else {}
    about: dict[str, Any] = {"study_name": name or "jaxmnist", "direction": "maximize"}
    for attempt in (1, 2, 3):  # two that start at once may both make a database's tables
        try:
            if "://" in place:
                about["storage"] = optuna.storages.RDBStorage(place, engine_kwargs=patience)
            elif place:
                about["storage"] = _journal(Path(place).absolute())
            return optuna.create_study(load_if_exists=True, **about)
        except OSError:
            raise
        except Exception as error:  # a damaged journal raises errors of a dozen kinds
            if attempt == 3:
                reason = getattr(error, "orig", None) or error.__cause__ or error
                told = str(reason).splitlines() or [type(reason).__name__]
                raise JaxmnistError(f"--study: {told[0]}") from None
            time.sleep(random.random())
    raise AssertionError


def _journal(path: Path) -> optuna.storages.JournalStorage:
    """A journal without a torn last line, which no reader would survive once more is written.

    The path must be absolute: with another one that has a directory, Optuna's lock waits for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path), grace_period=10)
    backend = JournalFileBackend(str(path), lock)
    lock.acquire()
    try:
        content = path.read_bytes()
        if not content.startswith(b'{"op_code"'[: len(content)]):
            raise ValueError(f"{path} is no journal of Optuna's")
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()
    return optuna.storages.JournalStorage(backend)


class Result(NamedTuple):
    """A setting, and the curves of its seeds that are trained."""

    setting: Setting
    members: dict[int, Curves]

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


@dataclass
class Worker:
    """One of any number of processes that work on a study.

    Args:
        study: of `open_study`.
        search: what is to be trained.
        data: "train", "test" and, if there is one, "validation", by which settings are ranked.
        about: what else the numbers depend on: the data, versions, flags; name -> value.
        devices: where to train.

    Raises:
        UsageError: another search is in the study, or it cannot take this one's values.
    """

    study: optuna.Study
    search: Search
    data: dict[str, Dataset]
    about: Mapping[str, Any]
    devices: Sequence[jax.Device]

    def __post_init__(self) -> None:
        self.name = os.urandom(8).hex()
        self.where: Any = {"devices": self.devices, "free": free_memory(self.devices)}
        self.ranked_by = f"{'validation' if 'validation' in self.data else 'test'}_accuracy"
        self._programs: dict[Any, Population] = {}
        given = self.search.options({}) | {**self.about, "settings": self.search.how}
        here = {n: "searched" if n in self.search.space else str(v) for n, v in given.items()}
        there = self.study.user_attrs.get("search", here)
        if told := differences(there, here):
            raise UsageError(f"the study has another search: {told}")
        self.study.set_user_attr("search", here)
        # So two searches that begin a study at one moment do not take each other's trials.
        self.digest = zlib.crc32(repr(sorted(here.items())).encode())
        for name, old in [item for trial in self._trials() for item in trial.distributions.items()]:
            if isinstance(old, CategoricalDistribution):
                if not set(self.search.space[name].choices) <= set(old.choices):
                    raise UsageError(f"in this study {name} can only be one of {old.choices}")
                self.search.space[name] = old

    def work(self) -> Iterator[int]:
        """Train what is missing until all is there; how many models are, after each chunk."""
        while True:
            found, claims = self._scan()
            if new := self._unclaimed(found, claims):
                same = (setting for setting in new if self._shape(setting) == self._shape(new[0]))
                chunk, seeds = self._program(new[0]).chunk, self.search.seeds
                count = chunk // (seeds if seeds <= chunk else math.gcd(seeds, chunk))
                self._claim(itertools.islice(same, count), found)
                _, claims = self._scan()
            running = [claim for claim in claims.values() if claim.state == TrialState.RUNNING]
            if not new and not running:
                return
            mine = [claim for claim in running if claim.user_attrs["worker"] == self.name]
            # What an idle worker takes is random, so that several take different ones.
            for _ in self._train(mine if new else [random.choice(running)]):
                yield self.done()

    def done(self) -> int:
        """How many models are trained."""
        return sum(len(result.members) for result in self.results())

    def results(self) -> list[Result]:
        """The settings of which a model is trained, in their order."""
        found = self._scan()[0]
        keys = map(_key, self.search.settings) if self.search.settings else found
        return [found[key] for key in keys if key in found and found[key].members]

    def _scan(self) -> tuple[dict[Key, Result], dict[Key, FrozenTrial]]:
        """The models of each setting, and the trial that counts: the first that runs or is whole.

        Other trials that run end here.
        """
        trials, found, claims = self._trials(), dict[Key, Result](), dict[Key, FrozenTrial]()
        for trial in trials:
            key, seeds, members = _key(trial.params), trial.user_attrs["seeds"], _members(trial)
            known = found.setdefault(key, Result(trial.params, {})).members
            known |= {n: members[n] for n in members.keys() & range(self.search.seeds)}
            useful = trial.state == TrialState.RUNNING or len(members) >= seeds
            if useful and seeds >= self.search.seeds:
                claims.setdefault(key, trial)
        for trial in trials:
            first = claims.get(_key(trial.params), trial)
            double = first is not trial and trial.user_attrs["seeds"] <= first.user_attrs["seeds"]
            if double and trial.state == TrialState.RUNNING:
                self._tell(trial, None)
        return found, claims

    def _trials(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.user_attrs.get("search") == self.digest]

    def _unclaimed(self, found: Mapping[Key, Result], claims: Mapping[Key, Any]) -> list[Setting]:
        """The settings that have no trial that counts; TPE may propose some."""
        search, known = self.search, [result.setting for result in found.values()]
        new = [setting for setting in search.settings or known if _key(setting) not in claims]
        if new or search.settings:
            return new
        sampler = optuna.samplers.TPESampler(seed=search.seed + len(claims))
        return search.draw(sampler, min(PROPOSALS, search.count - len(claims)), claims)

    def _claim(self, settings: Iterable[Setting], found: Mapping[Key, Result]) -> None:
        """Add running trials, with the models of their settings that are trained already."""
        about = {"search": self.digest, "worker": self.name, "seeds": self.search.seeds}
        for setting in settings:
            members = found[_key(setting)].members.items() if _key(setting) in found else ()
            given = about | {f"seed {seed}": curves for seed, curves in members}
            claim = self.search.trial(setting, state=TrialState.RUNNING, user_attrs=given)
            self.study.add_trial(claim)

    def _train(self, claims: Sequence[FrozenTrial]) -> Iterator[None]:
        """Train the models that the trials, all of one program, lack."""
        found = {claim.number: _members(claim) for claim in claims}
        each = ((claim, seed) for claim in claims for seed in range(claim.user_attrs["seeds"]))
        models = [(claim, seed) for claim, seed in each if seed not in found[claim.number]]
        todo = [(claim.params, seed) for claim, seed in models]
        chunks: Any = run_chunks(self._program(todo[0][0]), self._arguments(todo)) if todo else ()
        for rows, results in itertools.chain([((), {})], chunks):
            for i, row in enumerate(rows):
                claim, seed = models[row]
                found[claim.number][seed] = curves = _curves(results, i)
                with contextlib.suppress(UpdateFinishedTrialError):  # another was faster
                    storage, name = self.study._storage, f"seed {seed}"
                    storage.set_trial_user_attr(claim._trial_id, name, curves)
            for claim in claims:
                if len(found.get(claim.number, ())) == claim.user_attrs["seeds"]:
                    result = Result(claim.params, found.pop(claim.number))
                    self._tell(claim, None if result.diverged else result.score(self.ranked_by)[0])
            yield

    def _tell(self, trial: FrozenTrial, value: float | None) -> None:
        """End a trial that has not ended; without a value it has failed."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with contextlib.suppress(UpdateFinishedTrialError):
            self.study.tell(trial.number, value, state, skip_if_finished=True)

    def _shape(self, setting: Setting) -> list[Any]:
        """What settings share that share a program: all but numbers, which are its arguments.

        A number that is 0 may leave a part of the program out, momentum for instance, so it is no
        argument; that keeps a model to the bit what it is when trained alone.
        """
        return [bool(v) if isinstance(v := setting[n], float) else v for n in self.search.space]

    def _arguments(self, models: Sequence[tuple[Setting, int]]) -> dict[str, np.ndarray]:
        """What the models of a program differ in: [models] seeds, and [models] of each number."""
        names = [n for n, value in models[0][0].items() if isinstance(value, float) and value]
        members = {n: np.array([setting[n] for setting, _ in models], np.float32) for n in names}
        return members | {"seed": np.array([seed for _, seed in models], np.uint32)}

    def _program(self, setting: Setting) -> Population:
        """The compiled program of a setting, for all that share it."""
        shape = str(self._shape(setting))
        if shape not in self._programs:
            settings = self.search.settings or [setting] * PROPOSALS
            count = self.search.seeds * sum(str(self._shape(s)) == shape for s in settings)
            run, members = make_run(self.search.options(setting)), [(setting, 0)] * count
            population = compile_population(run, self._arguments(members), self.data, **self.where)
            self.data, self._programs[shape] = population.data, population  # on the devices
        return self._programs[shape]


def make_run(options: Mapping[str, Any]) -> Run:
    """What is done for one model: `run(member, data) -> scores`, as scripts/train.py does it.

    Args:
        options: those of a training. A member has a "seed", and numbers that take their place.
    """

    def run(member: dict[str, Any], data: dict[str, Dataset]) -> Metrics:
        given, key = {**options, **member}, jax.random.key(member["seed"])
        steps = given["epochs"] * -(-len(data["train"].labels) // given["batch_size"])
        names = inspect.signature(make_optimizer).parameters.keys() & given.keys()
        tx = make_optimizer(**{name: given[name] for name in names}, steps=steps)
        augment = given["augment"] if options["augment"] else None
        model, train_step, metrics_fn = make_training(given["hidden"], given["loss"], augment, tx)

        def test(state: TrainState) -> Metrics:
            names = sorted(data.keys() - {"train"})
            return {name: evaluate(metrics_fn, state.params, data[name]) for name in names}

        state, sizes = init_state(model, tx, key), {n: given[n] for n in ("epochs", "batch_size")}
        state, metrics = train(train_step, state, data["train"], key, test=test, **sizes)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]
        return {**metrics, "finite": jnp.stack(finite).all()}

    return run


def _key(setting: Setting) -> Key:
    return frozenset(setting.items())


def _members(trial: FrozenTrial) -> dict[int, Curves]:
    attributes = trial.user_attrs.items()
    return {int(name[5:]): curves for name, curves in attributes if name.startswith("seed ")}


def _curves(results: dict[str, Any], i: int) -> Curves:
    """The scores of a chunk's model i."""
    scores = {"train_loss": np.mean(results["loss"][i], axis=-1, dtype="float64")}
    for name in sorted(name for name in results if name.startswith("test_")):
        scores |= {f"{name[5:]}_{kind}": values[i] for kind, values in results[name].items()}
    finite = np.all([np.isfinite(v) for name, v in scores.items() if "loss" in name], axis=0)
    finite[-1] &= results["finite"][i]
    pairs = {name: zip(values, finite, strict=True) for name, values in scores.items()}
    return {name: [float(v) if ok else None for v, ok in of] for name, of in pairs.items()}


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """A row for each model and epoch: the setting, the seed, the epoch, its scores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for setting, members in results:
        for seed, curves in sorted(members.items()):
            if not text.tell():
                writer.writerow([*setting, "seed", "epoch", *curves])
            for epoch, scores in enumerate(zip(*curves.values(), strict=True), 1):
                writer.writerow([*setting.values(), seed, epoch, *scores])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def plot(worker: Worker, directory: Path) -> None:
    """Draw Optuna's plots of the settings: history, slices and, of ten at least, importances."""
    from matplotlib import pyplot, rc_context
    from optuna.visualization import matplotlib as optuna_plots

    pyplot.switch_backend("agg")
    study, space = optuna.create_study(direction="maximize"), dict(worker.search.space)
    for name, of_name in space.items():  # on a logarithmic axis, if that is how wide it is
        if isinstance(of_name, FloatDistribution) and 0 < 10 * of_name.low <= of_name.high:
            space[name] = FloatDistribution(of_name.low, of_name.high, log=True)
    good = [result for result in worker.results() if not result.diverged]
    for result in good:
        value = result.score(worker.ranked_by)[0]
        study.add_trial(create_trial(value=value, params=result.setting, distributions=space))
    names = ["optimization_history", "slice"]
    names += ["param_importances"] if len(good) >= 10 and len(space) > 1 else []
    # Optuna sets the style of the whole process, and warns of what it does itself.
    with rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            make: Any = getattr(optuna_plots, f"plot_{name}")
            axes = np.ravel(make(study, target_name=worker.ranked_by))
            for axis in axes:  # or the texts of a choice cover each other
                axis.tick_params("x", labelrotation=45)
            figure = axes[0].figure
            figure.savefig(directory / f"{name}.png", bbox_inches="tight")
            pyplot.close(figure)
