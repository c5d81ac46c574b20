"""A search is a study of Optuna's, on which any number of processes work; a trial is a setting.

Training is deterministic: a result that is computed twice is the same result. So there is no
heartbeat. A worker claims settings that nobody has claimed, by one write that makes a running
trial; one that finds none computes again what is still running. The first result counts. A trial
has the curves of each seed's model as an attribute; its value is their mean.
"""

import contextlib
import math
import os
import random
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from jaxmnist.data import Dataset
from jaxmnist.errors import JaxmnistError, UsageError
from jaxmnist.population import Population, compile_population, run_chunks
from jaxmnist.runs.directory import differences
from jaxmnist.runs.machine import free_memory
from jaxmnist.runs.search import Key, Result, Search, Setting, curves_of, key
from jaxmnist.runs.setup import make_run

PROPOSALS = 8  # that TPE makes at once; with more it learns too late from their results


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
    for attempt in range(3):  # two that start at once may both make a database's tables
        time.sleep(attempt * random.random())
        try:
            if "://" in place:
                about["storage"] = optuna.storages.RDBStorage(place, engine_kwargs=patience)
            elif place:
                about["storage"] = _open_journal(Path(place).absolute())
            return optuna.create_study(load_if_exists=True, **about)
        except OSError:
            raise
        except Exception as error:  # a damaged journal raises errors of a dozen kinds
            reason = getattr(error, "orig", None) or error.__cause__ or error
    told = str(reason).strip().partition("\n")[0] or type(reason).__name__
    raise JaxmnistError(f"--study: {told}")


def _open_journal(path: Path) -> optuna.storages.JournalStorage:
    """Open a journal, after cutting a torn last line off: with another after it, none can be read.

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
        os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()
    return optuna.storages.JournalStorage(backend)


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
        self.ranked_by = f"{'validation' if 'validation' in self.data else 'test'}_accuracy"
        self._programs: dict[str, Population] = {}
        given = self.search.options({}) | {**self.about, "settings": self.search.how}
        here = {n: "searched" if n in self.search.space else str(v) for n, v in given.items()}
        there = self.study.user_attrs.get("search", here)
        if told := differences(there, here):
            raise UsageError(f"the study has another search: {told}")
        self.study.set_user_attr("search", here)
        # So two searches that begin a study at one moment do not take each other's trials.
        self.digest = zlib.crc32(repr(here).encode())

    def work(self) -> Iterator[int]:
        """Train the missing models; yields the number of trained ones after each chunk."""
        while True:
            found = self._scan()
            running = [r for r in found.values() if r.claim and not r.claim.state.is_finished()]
            mine = [r for r in running if r.claim.user_attrs["worker"] == self.name]
            if mine:
                yield from self._train(mine)
            elif new := self._unclaimed(found):
                self._claim(new)
            elif running:  # of others: a random one, so that idle workers take different ones
                yield from self._train([random.choice(running)])
            else:
                return

    def done(self) -> int:
        """The number of trained models."""
        return sum(len(result.members) for result in self.results())

    def results(self) -> list[Result]:
        """The settings with at least one trained model, in order."""
        found = self._scan()
        keys = map(key, self.search.settings) if self.search.settings else found
        return [found[k] for k in keys if k in found and found[k].members]

    def _scan(self) -> dict[Key, Result]:
        """Each setting's trained models, of all trials, and its claim: the first for our seeds.

        Ends other running trials for as many seeds.
        """
        found, seeds = dict[Key, Result](), self.search.seeds
        for trial in self.study.get_trials(deepcopy=False):
            about = trial.user_attrs
            if about.get("search") != self.digest:
                continue
            result = found.setdefault(key(trial.params), Result(trial.params))
            trained = {seed: about.get(f"seed {seed}") for seed in range(seeds)}
            result.members |= {seed: curves for seed, curves in trained.items() if curves}
            if about["seeds"] == seeds and not result.claim:
                result.claim = trial
            elif about["seeds"] == seeds and not trial.state.is_finished():
                self._tell(trial, None)
        return found

    def _tell(self, trial: FrozenTrial, value: float | None) -> None:
        """End a trial that has not ended; without a value it has failed."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with contextlib.suppress(UpdateFinishedTrialError):
            self.study.tell(trial.number, value, state, skip_if_finished=True)

    def _unclaimed(self, found: Mapping[Key, Result]) -> list[Setting]:
        """The settings that nobody has claimed; TPE may propose more."""
        search, claims = self.search, {k: r.claim for k, r in found.items() if r.claim}
        known = search.settings or [result.setting for result in found.values()]
        new = [setting for setting in known if key(setting) not in claims]
        if new or search.settings:
            return new
        sampler = optuna.samplers.TPESampler(seed=search.sample_seed + len(claims))
        count = min(PROPOSALS, search.count - len(claims))
        return search.draw(sampler, count, [*claims.values()])

    def _claim(self, settings: Sequence[Setting]) -> None:
        """Make running trials of the first settings, as many as a program computes at once."""
        same = [s for s in settings if self._shape(s) == self._shape(settings[0])]
        chunk, seeds = self._program(settings[0]).chunk, self.search.seeds
        count = chunk // (seeds if seeds <= chunk else math.gcd(seeds, chunk))
        given = {"search": self.digest, "worker": self.name, "seeds": seeds}
        for setting in same[:count]:
            claim = self.search.trial(setting, state=TrialState.RUNNING, user_attrs=given)
            try:
                self.study.add_trial(claim)
            except ValueError as error:  # a database fixes the values of a choice
                raise UsageError(f"the study cannot take {setting}: {error}") from None

    def _train(self, results: Sequence[Result]) -> Iterator[int]:
        """Train the models that claims of one program lack; then end these."""
        seeds = range(self.search.seeds)
        models = [(r, seed) for r in results for seed in seeds if seed not in r.members]
        if models:
            population = self._program(results[0].setting)
            members = self._arguments([(result.setting, seed) for result, seed in models])
            for rows, values in run_chunks(population, members):
                for i, row in enumerate(rows):
                    result, seed = models[row]
                    result.members[seed] = curves = curves_of(values, i)
                    storage, trial = self.study._storage, result.claim._trial_id
                    with contextlib.suppress(UpdateFinishedTrialError):  # another was faster
                        storage.set_trial_user_attr(trial, f"seed {seed}", curves)
                yield self.done()
        for result in results:
            value = None if result.diverged else result.score(self.ranked_by)[0]
            self._tell(result.claim, value)

    def _shape(self, setting: Setting) -> list[Any]:
        """The key of a compiled program: every option except numbers, which are its arguments.

        A number that is 0 may leave a part of the program out, momentum for instance, so it is no
        argument; that keeps a model to the bit what it is when trained alone.
        """
        return [bool(v) if isinstance(v := setting[n], float) else v for n in self.search.space]

    def _arguments(self, models: Sequence[tuple[Setting, int]]) -> dict[str, np.ndarray]:
        """The arguments of a program: seeds [models], and each number [models]."""
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
            where: Any = {"devices": self.devices, "free": free_memory(self.devices)}
            population = compile_population(run, self._arguments(members), self.data, **where)
            self.data, self._programs[shape] = population.data, population  # on the devices
        return self._programs[shape]
