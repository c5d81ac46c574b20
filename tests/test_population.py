"""Populations: each member is what it is alone; nothing is lost in chunks, programs or memory."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import (
    MLP,
    JaxmnistError,
    classifier_metrics,
    classifier_objective,
    cross_entropy,
    epoch_order,
    evaluate,
    init_state,
    make_train_epoch,
    make_train_step,
    train,
)
from jaxmnist.population import Job, compile_population, run_chunks, run_jobs, run_population

MODEL = MLP(())  # one layer: quick to compile
METRICS = classifier_metrics(MODEL.apply)


def alone(seeds, rate, dataset):
    """Two epochs, of each seed, by the functions that a program of one's own calls."""
    tx = optax.sgd(rate)
    init = jax.jit(lambda seed: init_state(MODEL, tx, jax.random.key(seed)))
    train_epoch = jax.jit(make_train_epoch(make_train_step(classifier_objective(MODEL.apply), tx)))
    for seed in seeds:
        state, results = init(seed), []
        for epoch in range(2):
            order = epoch_order(jax.random.key(seed), epoch, len(dataset.labels))
            state, metrics = train_epoch(state, dataset, order)
            scores = evaluate(METRICS, state.params, dataset)
            results.append((metrics["loss"], scores["loss"], scores["accuracy"]))
        yield jax.tree.map(lambda *epochs: np.stack(epochs), *results)


@pytest.mark.parametrize("width", [1, 2])
def test_a_member_is_the_run_that_it_is_alone(toy, width):
    """Also beside one that diverges, and in a last call that is filled up; one trace for all."""
    traces = []

    def loss_fn(logits, labels):
        traces.append(len(logits))
        return cross_entropy(logits, labels)

    def run(member, data):
        key, tx = jax.random.key(member["seed"]), optax.sgd(member["rate"])
        step = make_train_step(classifier_objective(MODEL.apply, loss_fn), tx)
        metrics_fn = classifier_metrics(MODEL.apply, loss_fn)
        _, metrics = train(
            step,
            init_state(MODEL, tx, key),
            data,
            key,
            epochs=2,
            test=lambda state: evaluate(metrics_fn, state.params, data),
        )
        return metrics["loss"], metrics["test_loss"], metrics["test_accuracy"]

    seeds = np.array([0, 7, 2**32 - 1, 0, 7], np.uint32)
    members = {"seed": seeds, "rate": np.repeat(np.float32([0.1, 3e38]), (3, 2))}
    population = compile_population(run, members, toy, devices=jax.devices()[:1], width=width)
    assert traces == [64, 100]  # the step, which fills up its short batch, and the evaluation
    chunks = list(run_chunks(population, members))
    assert [len(rows) for rows, _ in chunks] == ([1] * 5 if width == 1 else [2, 2, 1])
    results = run_population(population, members)
    assert traces == [64, 100]
    assert results[0].shape == (5, 2, 2)
    for i, expected in enumerate(alone(seeds[:3], 0.1, toy)):
        for got, values in zip(results, expected, strict=True):
            np.testing.assert_allclose(got[i], values, rtol=1e-6)
    assert not np.isfinite(results[0][3:]).all(axis=(1, 2)).any()


def noise(member, data):
    """A run that is quick to compile and takes memory: 4 kB a member."""
    key = jax.random.key(member["seed"])
    return member["a"] * jax.random.uniform(key, (1000,)) + member["b"].sum() + data


@pytest.fixture
def noises():
    """Ten members, and what they give one by one."""
    # a is of NumPy's float64
    members = {"a": np.arange(10.0), "b": np.ones((10, 2), np.float32)}
    members["seed"] = np.arange(10, dtype=np.uint32)
    expected = [
        a * np.asarray(jax.random.uniform(jax.random.key(i), (1000,))) + 2
        for i, a in enumerate(members["a"])
    ]
    return members, expected


ZERO = np.zeros((), np.float32)


@pytest.mark.parametrize(("width", "chunk"), [(None, 1), (3, 3), (4, 4), (6, 5), (10, 10)])
def test_chunks_share_the_members_out_evenly(noises, width, chunk):
    members, expected = noises
    population = compile_population(
        noise, members, ZERO, devices=jax.devices("cpu")[:1], width=width
    )
    assert population.chunk == chunk
    np.testing.assert_allclose(run_population(population, members), expected, rtol=1e-6)
    some = jax.tree.map(lambda values: values[[7, 2, 5]], members)  # of a program for ten
    results = run_population(population, some)
    np.testing.assert_allclose(results, np.array(expected)[[7, 2, 5]], rtol=1e-6)


def test_as_many_at_once_as_memory_lets(noises):
    members, expected = noises
    options = {"devices": jax.devices("cpu")[:1], "width": 10}
    whole = compile_population(noise, members, ZERO, **options)
    assert 40_000 < whole.memory < 400_000
    free = whole.memory * 2 // 3
    part = compile_population(noise, members, ZERO, free=free, **options)
    assert 1 < part.chunk < 10
    assert part.memory <= free
    np.testing.assert_allclose(run_population(part, members), expected, rtol=1e-6)
    with pytest.raises(JaxmnistError, match=r"one model on each of 1 devices .* choose a smaller"):
        compile_population(noise, members, ZERO, free=4000, **options)


def test_memory_that_ends_in_the_middle_is_one_line(noises):
    members, _ = noises
    population = compile_population(noise, members, ZERO)

    def program(members, data):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand more")

    with pytest.raises(JaxmnistError, match=r"models at once need .* GB") as error:
        run_population(population._replace(program=program), members)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "members",
    [
        {"seed": np.zeros(0, np.uint32)},
        {"seed": np.zeros(2, np.uint32), "a": np.zeros(3, np.float32)},
        {},
    ],
)
def test_members_that_do_not_fit_together(members):
    with pytest.raises(ValueError, match="at least one member, and all its arrays one length"):
        compile_population(noise, members, ZERO)


def test_members_and_results_may_hold_keys():
    keys = jax.random.split(jax.random.key(0), 5)

    def run(key, data):
        return jax.random.split(key)[0], jax.random.uniform(key) + data

    expected = jax.vmap(lambda key: run(key, jnp.float32(0)))(keys)
    for width in (1, 2, 5):
        population = compile_population(run, keys, ZERO, devices=jax.devices()[:1], width=width)
        following, values = run_population(population, keys)
        assert (jax.random.key_data(following) == jax.random.key_data(expected[0])).all()
        np.testing.assert_array_equal(values, expected[1])


def test_programs_are_compiled_while_others_run_and_once(monkeypatch):
    """Two programs, some of whose members are left; the second is compiled in another thread."""
    threads, traces = [], []
    compile_population = sweep_module.compile_population

    def compile_here(*args, **kwargs):
        threads.append(threading.current_thread())
        return compile_population(*args, **kwargs)

    monkeypatch.setattr(sweep_module, "compile_population", compile_here)

    def scale(factor):
        def run(member, data):
            traces.append(factor)
            return factor * member + data

        return run

    jobs = [
        Job(scale(2.0), np.arange(4, dtype=np.float32), np.array([1, 3])),
        Job(scale(3.0), np.arange(3, dtype=np.float32), np.array([0])),
    ]
    found = [
        (job, row, float(value))
        for job, _, (rows, values) in run_jobs(jobs, ZERO, devices=jax.devices()[:1])
        for row, value in zip(rows.tolist(), values, strict=True)
    ]
    assert found == [(0, 1, 2.0), (0, 3, 6.0), (1, 0, 0.0)]
    assert traces == [2.0, 3.0]
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    assert list(run_jobs([], ZERO)) == []


def test_population_based_training():
    """The cookbook's: the worse half copies the better one's states and perturbs their rates."""

    def epoch(member, target):
        state, rate = member["state"], member["rate"]
        state = jax.lax.fori_loop(0, 10, lambda _, x: x - rate * (x - target), state)
        return {"state": state, "loss": (state - target) ** 2}

    rng, rates = np.random.default_rng(0), np.float32([1e-4, 1e-3, 1e-2, 2e-2])
    members = {"state": np.zeros(4, np.float32), "rate": rates}
    population = compile_population(epoch, members, np.float32(1))
    for _ in range(10):
        results = run_population(population, members)
        order = np.argsort(results["loss"])
        copied = np.concatenate([order[:2], order[:2]])
        factors = np.repeat(np.float32([1, 1]), 2) * rng.choice([0.8, 1.25], 4).astype(np.float32)
        members = {
            "state": results["state"][copied],
            "rate": members["rate"][copied] * np.where(np.arange(4) < 2, 1, factors),
        }
    assert members["state"][0] > 1 - (1 - 0.02) ** 100  # where the best rate alone would end
