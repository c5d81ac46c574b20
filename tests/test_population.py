"""Populations: each member is what it is alone, in chunks, and within the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import MLP, JaxmnistError, classifier_objective, init_state, make_train_step, train
from jaxmnist.population import MEMORY_SHARE, compile_population, run_population
from tests.helpers import assert_close, counting

ZERO = np.zeros((), np.float32)
ONE = jax.devices("cpu")[:1]  # a single device


def test_a_member_is_the_run_that_it_is_alone(toy):
    """Also beside one that diverges, and with one trace for all."""
    model = MLP(())  # one layer: quick to compile
    objective = counting(classifier_objective(model.apply))

    def run(member, data):
        key, tx = jax.random.key(member["seed"]), optax.sgd(member["rate"])
        state, step = init_state(model, tx, key), make_train_step(objective, tx)
        state, metrics = train(step, state, data, key, epochs=2)
        return metrics["loss"], state.params

    members = {"seed": np.uint32([0, 2**32 - 1, 7]), "rate": np.float32([0.1, 0.1, 3e38])}
    population = compile_population(run, members, toy, devices=ONE, width=2)
    assert objective.traces == 1
    results = run_population(population, members)
    for i in range(2):
        member, found = jax.tree.map(lambda x, i=i: x[i], (members, results))
        assert_close(found, jax.jit(run)(member, toy), 1e-6)
    assert not np.isfinite(results[0][2]).all()


def noise(member, data):
    """A run that is quick to compile and takes memory: 4 kB a member."""
    key = jax.random.key(member["seed"])
    return member["a"] * jax.random.uniform(key, (1000,)) + member["b"].sum() + data


@pytest.fixture(scope="module")
def noises():
    """Ten members, and what they give one by one."""
    members = {"a": np.arange(10.0), "b": np.ones((10, 2), np.float32)}  # float64: NumPy's
    members["seed"] = np.arange(10, dtype=np.uint32)
    draws = [jax.random.uniform(jax.random.key(i), (1000,)) for i in range(10)]
    return members, [a * np.asarray(u) + 2 for a, u in zip(members["a"], draws, strict=True)]


@pytest.mark.parametrize(("width", "chunk"), [(None, 1), (4, 4), (6, 5), (10, 10)])
def test_chunks_share_the_members_out_evenly(noises, width, chunk):
    members, expected = noises
    population = compile_population(noise, members, ZERO, devices=ONE, width=width)
    assert population.chunk == chunk
    np.testing.assert_allclose(run_population(population, members), expected, rtol=1e-6)
    some = jax.tree.map(lambda values: values[[7, 2, 5]], members)  # of a program for ten
    results = run_population(population, some)
    np.testing.assert_allclose(results, np.array(expected)[[7, 2, 5]], rtol=1e-6)


def test_as_many_at_once_as_memory_lets(noises):
    members, expected = noises
    options = {"devices": ONE, "width": 10}
    whole = compile_population(noise, members, ZERO, **options)
    assert 40_000 < whole.memory < 400_000
    free = whole.memory * 2 // 3 / MEMORY_SHARE
    part = compile_population(noise, members, ZERO, free=int(free), **options)
    assert 4 < part.chunk < 10
    assert part.memory <= MEMORY_SHARE * free
    np.testing.assert_allclose(run_population(part, members), expected, rtol=1e-6)
    with pytest.raises(JaxmnistError, match=r"one model on each of 1 devices .* choose a smaller"):
        compile_population(noise, members, ZERO, free=4000, **options)


def test_members_of_other_lengths_are_an_error():
    for lengths in ({"a": 0}, {"a": 2, "b": 3}, {}):
        members = {name: np.zeros(length, np.float32) for name, length in lengths.items()}
        with pytest.raises(ValueError, match="arrays need examples, as many in each"):
            compile_population(noise, members, ZERO)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_members_and_results_may_hold_keys(impl):
    """Under vmap JAX's rbg keys draw other numbers than alone; here they do not."""
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl=impl))(jnp.arange(5))

    def run(key, data):
        return jax.random.split(key)[0], jax.random.uniform(key) + data

    for width in (1, 5):
        population = compile_population(run, keys, ZERO, devices=ONE, width=width)
        assert population.chunk == (width if impl == "threefry2x32" else 1)
        following, values = run_population(population, keys)
        one_by_one = jax.jit(lambda keys: jax.lax.map(lambda key: run(key, ZERO), keys))
        expected = one_by_one(keys)
        assert (jax.random.key_data(following) == jax.random.key_data(expected[0])).all()
        np.testing.assert_array_equal(values, expected[1])
