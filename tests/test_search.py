"""A search is a study: any workers, stopped at any moment, end in the same results."""

import csv
import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("optuna")

from jaxmnist import Dataset, JaxmnistError
from jaxmnist.errors import UsageError
from jaxmnist.runs import study as module
from jaxmnist.runs.search import Result, Search, curves_of, plot, write_csv
from jaxmnist.runs.study import Worker, open_study
from tests.test_cli import cli


@dataclasses.dataclass(frozen=True)
class Group:
    """Options, two of which exclude each other."""

    learning_rate: float = 0.5
    momentum: float = 0.0
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    batch_size: int = 10
    hidden: tuple[int, ...] = (8,)

    def __post_init__(self):
        if self.momentum and self.optimizer != "sgd":
            raise UsageError("momentum is SGD's")


def make_search(*specs, sample=0, sampler="random", seeds=1, seed=0, **given):
    """A search of a grid or, with `sample`, of so many settings."""
    grid, sample = ((), (str(sample), *specs)) if sample else (specs, ())
    asked = {"sampler": sampler, "sample_seed": seed, "seeds": seeds}
    return Search(SimpleNamespace(grid=grid, sample=sample, **asked), [Group(**given)], cli.convert)


@pytest.fixture
def start(monkeypatch):
    """Makes a worker whose models are quickly trained; `start.trained` has what is computed."""
    data = Dataset(np.zeros((20, 28, 28), np.uint8), np.zeros(20, np.int32))

    def make_run(options):
        def run(member, data):
            rate = member.get("learning_rate", jnp.float32(options["learning_rate"]))
            start.traces += 1
            accuracy = 1 / (1 + jnp.abs(jnp.log10(rate) + 2 + member["seed"] / 64))
            loss = jnp.where(rate > 10, jnp.nan, 1 - accuracy) * jnp.ones(2)
            tested = {"loss": loss, "accuracy": accuracy * jnp.ones(2)}
            return {"loss": loss[:, None], "test_test": tested, "finite": jnp.array(True)}

        return run

    def start(where, *specs, about=None, **options):
        study, search = open_study(where and str(where)), make_search(*specs, **options)
        split = {"train": data, "test": data}
        return Worker(study, search, split, about or {}, jax.devices()[:1])

    def run_chunks(population, members):
        start.trained += [int(seed) for seed in members["seed"]]
        return chunks(population, members)

    start.trained, start.traces, chunks = [], 0, module.run_chunks
    monkeypatch.setattr(module, "make_run", make_run)
    monkeypatch.setattr(module, "run_chunks", run_chunks)
    return start


def finish(worker):
    """Its results after all work, and how each trial has ended."""
    for _ in worker.work():
        pass
    return worker.results(), [trial.state.name for trial in worker.study.trials]


def test_a_grid_has_all_possible_combinations():
    search = make_search("learning_rate=0.1,1e-2", "momentum=0,0.9", "optimizer=adam,sgd")
    settings = [tuple(setting.values()) for setting in search.settings]
    assert settings == [
        (rate, momentum, name)
        for rate, momentum, name in itertools.product((0.1, 0.01), (0, 0.9), ("adam", "sgd"))
        if not (momentum and name == "adam")
    ]
    assert search.left_out == {"momentum is SGD's": 2}
    assert search.space["optimizer"].choices == ("sgd", "adam", "adamw")  # others can join
    assert make_search("hidden=8,4;;16").settings == [{"hidden": h} for h in ("8,4", "", "16")]
    assert search.options({"hidden": "8,4"})["hidden"] == (8, 4)


def test_random_settings_are_the_same_for_every_worker():
    specs = ("learning_rate=log:1e-4:1e-1", "batch_size=2:5", "optimizer=sgd,adam")
    many, few = (make_search(*specs, sample=n, seed=1).settings for n in (40, 10))
    assert many[:10] == few
    assert make_search(*specs, sample=10, seed=2).settings != few
    rates = np.array([setting["learning_rate"] for setting in many])
    assert ((rates >= 1e-4) & (rates <= 1e-1)).all()
    assert 0.3 < (rates < 10**-2.5).mean() < 0.7  # logarithmic
    assert {setting["batch_size"] for setting in many} == {2, 3, 4, 5}
    assert {setting["optimizer"] for setting in many} == {"sgd", "adam"}
    assert make_search("batch_size=1,2", sample=9).count == 2  # there are no more


@pytest.mark.parametrize(
    ("specs", "options", "words"),
    [
        ([], {}, "--grid"),
        (["learning_rate=0.1"], {"sample": "x"}, "--sample N"),
        (["learning_rate=0:1"], {"sample": "0"}, "settings, not 0"),
        (["learning_rate"], {}, "OPTION=VALUE"),
        (["learning_rate=0.1,1e-1"], {}, "a value is given twice"),
        (["learning_rat=1"], {}, "learning_rat cannot be searched; these can: learning_rate,"),
        (["optimizer=adam", "momentum=0.5"], {}, "no setting is possible: momentum is SGD's"),
        (["batch_size=" + ",".join(map(str, range(100_001)))], {}, "1 to 100,000 settings"),
        (["learning_rate=2:1"], {"sample": 3}, "LOW:HIGH"),
        (["learning_rate=log:0:1"], {"sample": 3}, "above 0, log:LOW:HIGH"),
    ],
)
def test_what_is_no_search_is_one_line(specs, options, words):
    with pytest.raises(UsageError, match=words) as error:
        make_search(*specs, **options)
    assert "\n" not in str(error.value)


def test_a_score_is_the_last_epochs():
    curves = {"train_loss": [3.0, 2.0, 1.0], "test_accuracy": [0.25, 0.75, 0.5]}
    assert Result({}, {0: curves}).score("test_accuracy")[0] == 0.5


SPECS = ("learning_rate=0.001,0.01,0.1,100", "momentum=0,0.5")


def test_numbers_share_a_program_and_a_diverged_seed_fails_a_setting(start):
    worker = start(None, *SPECS, seeds=3)
    results, states = finish(worker)
    assert start.traces == 2  # momentum 0 has a program of its own
    assert sorted(start.trained) == [0] * 8 + [1] * 8 + [2] * 8
    assert [result.setting for result in results] == worker.search.settings
    assert [states.count(state) for state in ("COMPLETE", "FAIL")] == [6, 2]
    assert [result.diverged for result in results] == [0] * 6 + [3] * 2
    values = [1 / (1 + seed / 64) for seed in range(3)]
    mean, deviation = results[2].score("test_accuracy")
    np.testing.assert_allclose((mean, deviation), (np.mean(values), np.std(values, ddof=1)), 1e-4)
    assert worker.study.best_value == mean
    assert all(map(math.isnan, results[-1].score("test_accuracy")))
    assert results[-1].members[0]["test_accuracy"] == [None, None]


def test_a_parameter_that_is_not_finite_is_a_divergence():
    tested = {"loss": np.ones((1, 2)), "accuracy": np.ones((1, 2))}
    results = {"loss": np.ones((1, 2, 3)), "test_test": tested, "finite": np.array([False])}
    assert set(map(tuple, curves_of(results, 0).values())) == {(1.0, None)}


@pytest.mark.parametrize(
    "place",
    ["study.log", pytest.param("sqlite:///study.db#mine", marks=pytest.mark.slow)],
)
def test_stopped_at_any_moment_it_goes_on(start, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    expected, _ = finish(start(None, *SPECS, seeds=3))
    for chunks in (0, 5):
        where = place.replace("study", f"study{chunks}")
        work = start(where, *SPECS, seeds=3).work()
        list(itertools.islice(work, chunks))
        work.close()  # claims stay behind
        start.trained = []
        again = start(where, *SPECS, seeds=3)
        left = 24 - again.done()
        results, states = finish(again)
        assert (results, len(start.trained)) == (expected, left)
        assert [states.count(state) for state in ("COMPLETE", "FAIL")] == [6, 2]
    assert finish(start(where, *SPECS, seeds=2))[0][0].members.keys() == {0, 1}
    assert len(start.trained) == left


def test_workers_share_the_settings(start, tmp_path):
    workers = [start(tmp_path / "study.log", *SPECS) for _ in range(3)]
    for _ in itertools.zip_longest(*(worker.work() for worker in workers)):
        pass
    assert workers[0].results() == workers[1].results() == finish(start(None, *SPECS))[0]
    names = [trial.user_attrs["worker"] for trial in workers[0].study.trials]
    assert (len(names), set(names)) == (8, {worker.name for worker in workers})


def test_of_two_claims_the_first_counts(start, tmp_path):
    one, other = (start(tmp_path / "study.log", "learning_rate=0.1") for _ in range(2))
    for worker in (one, other):
        worker._claim(worker.search.settings)
    results, states = finish(other)  # idle: it computes the other's claim
    one._tell(one.study.trials[0], 0.0)  # what is told later changes nothing
    assert states == ["COMPLETE", "FAIL"]
    assert finish(one) == (results, states)
    assert start.trained == [0]
    assert one.study.best_value != 0


def test_more_seeds_and_values_extend_a_study(start, tmp_path):
    where = tmp_path / "study.log"
    finish(start(where, "learning_rate=0.1,1", "optimizer=sgd", seeds=2))
    start.trained, specs = [], ("learning_rate=1,0.1,10", "optimizer=sgd,adam")
    results, states = finish(start(where, *specs, seeds=3))
    assert sorted(start.trained) == [0] * 4 + [1] * 4 + [2] * 6
    assert states == ["COMPLETE"] * 8
    assert results == finish(start(None, *specs, seeds=3))[0]
    for where in (tmp_path / "hidden.log", f"sqlite:///{tmp_path}/hidden.db"):
        finish(start(where, "hidden=8;16"))
        finish(start(where, "hidden=16"))
    finish(start(tmp_path / "hidden.log", "hidden=16;32"))
    with pytest.raises(UsageError, match=r"the study cannot take .'hidden': '32'.: "):
        finish(start(where, "hidden=16;32"))


@pytest.mark.parametrize(
    ("specs", "more", "words"),
    [
        (["momentum=0.1"], {}, "learning_rate searched there, 0.5 here, momentum 0.0 there, sea"),
        (["learning_rate=1"], {"batch_size": 20}, "batch_size 10 there, 20 here"),
        (["learning_rate=1"], {"about": {"jax": "2"}}, "jax 1 there, 2 here"),
        (["learning_rate=1:2"], {"sample": 2}, "settings grid there, random 0 .* here"),
    ],
)
def test_another_search_is_refused(start, tmp_path, specs, more, words):
    where, about = tmp_path / "study.log", {"about": {"jax": "1"}}
    finish(start(where, "learning_rate=1", **about))
    with pytest.raises(UsageError, match=words):
        start(where, *specs, **(about | more))
    assert finish(start(where, "learning_rate=1", **about))[1] == ["COMPLETE"]


def test_a_torn_journal_goes_on_and_other_places_are_refused(start, tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    where = tmp_path / "study.log"
    expected, _ = finish(start(where, *SPECS))
    content = where.read_bytes()
    for size in (5, len(content) // 2, len(content) - 1):
        where.write_bytes(content[:size])
        assert finish(start(where, *SPECS))[0] == expected
    for other in (b"no study", b'{"op_code": broken}\n{"more": 1}\n'):
        where.write_bytes(other)
        with pytest.raises(JaxmnistError, match=r"^--study: "):
            open_study(str(where))
        assert where.read_bytes() == other
    for url in ("no://such", "mysql+nothing://h/x", "sqlite:////no/such/dir/x"):
        with pytest.raises(JaxmnistError, match=r"^--study: [^\n]+$"):
            open_study(url)


def test_tpe_finds_better_settings_than_it_began_with(start, tmp_path):
    given = {"sample": 25, "sampler": "tpe", "seeds": 2}
    specs = ("learning_rate=log:1e-5:1e3", "momentum=0:0.9", "optimizer=sgd,adam")
    list(itertools.islice(start(tmp_path / "study.log", *specs, **given).work(), 9))
    results, states = finish(start(tmp_path / "study.log", *specs, **given))
    assert len(states) == len({str(result.setting) for result in results}) == 25
    assert sum(r.diverged > 0 for r in results[:10]) > sum(r.diverged > 0 for r in results[-10:])
    scores = [result.score("test_accuracy")[0] for result in results]
    assert np.nanmean(scores[-10:]) > np.nanmean(scores[:10])
    more = finish(start(tmp_path / "study.log", *specs, **given | {"seeds": 3}))[0]
    assert [result.setting for result in more] == [result.setting for result in results]


@pytest.mark.slow
def test_csv_and_plots(start, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    for specs, images in ((SPECS, 2), (["learning_rate=0.001,0.002", "batch_size=1,2,3,4,5"], 3)):
        worker, directory = start(None, *specs, seeds=2), tmp_path / str(images)
        results, _ = finish(worker)
        write_csv(tmp_path / "x.csv", results)
        rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
        assert len(rows) == 2 * 2 * len(results)
        assert [rows[3][name] for name in ("learning_rate", "seed", "epoch")] == ["0.001", "1", "2"]
        assert float(rows[3]["test_loss"]) == results[0].members[1]["test_loss"][1]
        directory.mkdir()
        plot(directory, results, worker.search.space, worker.ranked_by)
        assert len(list(directory.iterdir())) == images
        assert matplotlib.rcParams["axes.facecolor"] == "white"  # Optuna's style is gone
        assert matplotlib.pyplot.get_fignums() == []
    assert ",".join(rows[0]).startswith("learning_rate,batch_size,seed,epoch,train_loss,test_acc")
