"""Training goes wherever a pure function goes: any transformation, optimizer, model and loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxmnist import (
    MLP,
    Dataset,
    TrainState,
    classifier_objective,
    cross_entropy,
    init_state,
    make_train_epoch,
    make_train_step,
    preprocess,
    train,
)
from tests.helpers import assert_close, counting

KEY = jax.random.key(0)
MODEL = MLP(hidden=(8,))
PARAMS = MODEL.init(KEY, np.zeros((1, 784), np.float32))
LINEAR = MLP(hidden=())  # quicker to compile, where depth does not matter
WEIGHTS = LINEAR.init(KEY, np.zeros((1, 784), np.float32))
RATE = jnp.float32(0.1)


def jit_step(tx, model=MODEL):
    return jax.jit(make_train_step(classifier_objective(model.apply), tx))


def stateful(params, batch, *, key, model_state, where):
    """Dropout of a linear model's inputs, and their running mean, which is taken off them."""
    images = preprocess(batch.images)
    rows = None if where is None else where[:, None]
    mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(images, axis=0, where=rows)
    kept = jax.random.bernoulli(key, 0.8, images.shape)
    logits = LINEAR.apply(params, jnp.where(kept, images - mean[None], 0))
    return cross_entropy(logits, batch.labels), {}, {"mean": mean}


# The notebook's objective, and one that uses all that a state may hold.
OBJECTIVES = {
    "notebook": (classifier_objective(LINEAR.apply), {}),
    "all": (stateful, {"model_state": {"mean": jnp.zeros(784)}, "key": KEY}),
}


def total(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


def double(tree):
    return jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree)


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def run_of(kind, data, objective, rest):
    """`run(params, rate) -> (params, losses)`: one step, or a whole run."""

    def run(params, rate):
        tx = optax.sgd(rate)
        step, state = make_train_step(objective, tx), TrainState.create(params, tx, **rest)
        if kind == "step":
            state, metrics = step(state, data)
        else:
            state, metrics = train(step, state, data, KEY, epochs=2)
        return state.params, metrics["loss"]

    return run


def if_finite(result, derivative):
    """The result, or NaN; so that XLA has to compute the derivative too."""
    return jax.tree.map(lambda x: x + 0 * total(derivative), result)


def with_gradient(f):
    def objective(*args):
        result = f(*args)
        return total(result[1]), result

    def both(*args):
        (_, result), grads = jax.value_and_grad(objective, (0, 1), has_aux=True)(*args)
        return if_finite(result, grads)

    return both


def on_a_mesh(f):
    mesh, everywhere = jax.make_mesh((1,), ("data",), (AxisType.Auto,)), PartitionSpec()
    return jax.shard_map(f, mesh=mesh, in_specs=everywhere, out_specs=everywhere)


THROUGH = {
    "grad of checkpoint": lambda f: jax.jit(with_gradient(jax.checkpoint(f))),
    "jvp": lambda f: jax.jit(lambda *args: if_finite(*jax.jvp(f, args, args))),
    "scan": lambda f: jax.jit(lambda *args: first(jax.lax.map(lambda a: f(*a), double(args)))),
    "vmap of grad": lambda f: jax.jit(
        lambda *args: first(jax.vmap(with_gradient(f))(*double(args)))
    ),
    "shard_map": lambda f: jax.jit(on_a_mesh(f)),
    "export": lambda f: lambda *args: jax.export.export(jax.jit(f))(*args).call(*args),
}


@pytest.fixture(scope="module")
def plain():
    """What each kind of run gives under nothing but jit."""
    results = {}

    def result(kind, name, data):
        if (kind, name) not in results:
            results[kind, name] = jax.jit(run_of(kind, data, *OBJECTIVES[name]))(WEIGHTS, RATE)
        return results[kind, name]

    return result


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("kind", ["step", "run"])
@pytest.mark.parametrize("name", [pytest.param("notebook", marks=pytest.mark.slow), "all"])
def test_composes(toy, plain, name, kind, through):
    """The result is the one without the transformation, and the step is traced once."""
    objective, rest = OBJECTIVES[name]
    objective = counting(objective)
    result = THROUGH[through](run_of(kind, toy, objective, rest))(WEIGHTS, RATE)
    assert_close(result, plain(kind, name, toy), 2e-6)
    assert objective.traces == 1


@pytest.mark.slow
def test_hypergradients_equal_central_differences(toy):
    """In float64, backwards and forwards through 20 steps of Adam with a schedule."""
    held_out = np.float64(toy.images[80:].reshape(20, -1)) / 127.5 - 1

    def transform(images):
        return images.reshape(4, -1) / jnp.float64(127.5) - 1

    def loss(hyper, params):
        schedule = lambda step: hyper["rate"] * 0.9**step  # noqa: E731
        # At a gradient of 0 the root's derivative is infinite, which eps_root is for.
        adam = optax.adam(schedule, b1=hyper["momentum"], eps_root=1e-8)
        tx = optax.chain(optax.clip_by_global_norm(1.0), adam)
        step = make_train_step(classifier_objective(MODEL.apply, transform=transform), tx)
        epoch = make_train_epoch(jax.checkpoint(step), 4)
        state, _ = epoch(TrainState.create(params, tx), toy, np.arange(80))
        return cross_entropy(MODEL.apply(state.params, held_out), toy.labels[80:]).mean()

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        at = {"rate": jnp.float64(0.03), "momentum": jnp.float64(0.8)}
        at = at, jax.tree.map(jnp.float64, PARAMS)
        value_and_grads = jax.jit(jax.value_and_grad(loss, (0, 1)))
        grads, still = value_and_grads(*at)[1], jax.tree.map(jnp.zeros_like, at)
        some = jax.tree.map(
            lambda x: jnp.asarray(np.random.default_rng(0).normal(size=x.shape)), at[1]
        )
        for direction in (
            (still[0] | {"rate": jnp.float64(1)}, still[1]),
            (still[0] | {"momentum": jnp.float64(1)}, still[1]),
            (still[0], some),
        ):
            moved = (
                jax.tree.map(lambda x, d, e=e: x + e * d, at, direction) for e in (1e-7, -1e-7)
            )
            there, back = (value_and_grads(*point)[0] for point in moved)
            gradient = total(jax.tree.map(lambda g, d: g * d, grads, direction))
            assert abs(gradient) > 1e-3
            np.testing.assert_allclose(gradient, (there - back) / 2e-7, rtol=1e-5)
        jvp = jax.jit(lambda at, direction: jax.jvp(loss, at, direction)[1])(at, direction)
        np.testing.assert_allclose(jvp, gradient, rtol=1e-9)


def test_per_example_gradients_average_to_the_batchs(toy):
    """Those of a gradient of one's own, which takes the step's place of `value_and_grad`."""

    def per_example(scalar):
        def one(params, row, key):
            result = jax.value_and_grad(scalar, has_aux=True)
            return result(params, jax.tree.map(lambda x: x[None], row), key, None, None)

        def each(params, batch, key, model_state, where):
            results = jax.vmap(one, (None, 0, None))(params, batch, key)
            return jax.tree.map(lambda x: x.mean(axis=0), results)

        return each

    tx, objective = optax.sgd(1.0), classifier_objective(MODEL.apply)
    expected, _ = jit_step(tx)(TrainState.create(PARAMS, tx), toy)
    step = jax.jit(make_train_step(objective, tx, value_and_grad=per_example))
    assert_close(step(TrainState.create(PARAMS, tx), toy)[0].params, expected.params, 1e-5)


def test_nothing_is_donated_unless_the_caller_says_so(toy):
    """Eagerly differentiated and vmapped, a step that donates deletes what it was given."""
    tx = optax.sgd(0.1, momentum=0.9)
    batch = jax.tree.map(jnp.asarray, toy)
    state = TrainState.create(jax.tree.map(jnp.copy, WEIGHTS), tx)
    step = make_train_step(classifier_objective(LINEAR.apply), tx)
    jax.vmap(step, (0, None))(double(state), batch)
    jax.grad(lambda params: step(state._replace(params=params), batch)[1]["loss"])(state.params)
    make_train_epoch(step, 50)(state, batch, jnp.arange(100))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, batch)))
    jax.jit(step, donate_argnums=0)(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))


def test_export_with_a_symbolic_batch_size(toy, monkeypatch):
    """One program takes batches of any size."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # JAX's "n" is no `int` to it
    tx = optax.sgd(0.1, momentum=0.9)
    state, (n,) = TrainState.create(PARAMS, tx), jax.export.symbolic_shape("n")
    images, labels = jax.ShapeDtypeStruct((n, 28, 28), "u1"), jax.ShapeDtypeStruct((n,), "i4")
    shapes = jax.eval_shape(lambda: state), Dataset(images, labels)
    program = jax.export.export(jit_step(tx))(*shapes)
    for size in (1, 64):
        batch = Dataset(toy.images[:size], toy.labels[:size])
        assert_close(program.call(state, batch), jit_step(tx)(state, batch), 2e-6)


@pytest.mark.parametrize("bare", [True, False])
def test_micro_batches_accumulate_to_one_step(toy, bare):
    """Four batches of 16 are one step on 64 images; also where the optimizer looks at the loss."""
    inner = optax.sgd(0.1, momentum=0.9)
    state = TrainState.create(PARAMS, inner)
    expected, _ = jit_step(inner)(state, Dataset(toy.images[:64], toy.labels[:64]))
    tx = optax.MultiSteps(optax.chain(inner, optax.contrib.reduce_on_plateau(patience=9)), 4)
    state, step = (
        TrainState.create(PARAMS, tx),
        jit_step(tx if bare else tx.gradient_transformation()),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 and float
        for i in range(0, 64, 16):
            assert_close(state.params, PARAMS, 0)  # nothing moves before the last of them
            state, metrics = step(state, Dataset(toy.images[i : i + 16], toy.labels[i : i + 16]))
    assert_close(state.params, expected.params, 1e-6)
    best = state.opt_state.inner_opt_state[1].best_value
    np.testing.assert_allclose(best, metrics["loss"], rtol=1e-6)


def test_a_line_search_asks_for_the_objective(toy):
    """At a rate of 30, which is far too large, each loss is below the last."""
    tx, losses = optax.chain(optax.sgd(30.0), optax.scale_by_backtracking_linesearch(20)), []
    state, step = TrainState.create(PARAMS, tx), jit_step(tx)
    for _ in range(4):
        state, metrics = step(state, toy)
        losses.append(metrics["loss"])
    assert np.all(np.diff(losses) < 0)


def test_schedules_and_injected_hyperparameters(toy):
    """Each against gradient descent written out, at the rates that it amounts to."""
    rates, images = (0.1, 0.03, 0.01), preprocess(toy.images)
    grad = jax.jit(jax.grad(lambda p: cross_entropy(MODEL.apply(p, images), toy.labels).mean()))
    scheduled = optax.sgd(lambda step: jnp.array(rates)[step])
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    steps, expected = (jit_step(scheduled), jit_step(injected)), PARAMS
    states = [TrainState.create(PARAMS, tx) for tx in (scheduled, injected)]
    for rate in rates:
        expected = jax.tree.map(lambda p, g, r=rate: p - r * g, expected, grad(expected))
        states[1].opt_state.hyperparams["learning_rate"] = jnp.float32(rate)
        states = [step(state, toy)[0] for step, state in zip(steps, states, strict=True)]
        for state in states:
            assert_close(state.params, expected, 1e-6)


class Pair(NamedTuple):
    """A model that needs no library: two functions."""

    init: Callable
    apply: Callable


@pytest.mark.slow
def test_an_nnx_module_trains_as_the_linen_module_with_its_weights(toy):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(784, 8, rngs=rngs)
            self.outer = nnx.Linear(8, 10, rngs=rngs)

        def __call__(self, images):
            return self.outer(nnx.relu(self.inner(images)))

    structure, tx = nnx.graphdef(Net(nnx.Rngs(0))), optax.sgd(0.1, momentum=0.9)
    model = Pair(
        lambda key, images: nnx.state(Net(nnx.Rngs(key))),
        lambda params, images: nnx.merge(structure, params)(images),
    )
    state = init_state(model, tx, KEY)

    def as_linen(params):
        layers = nnx.to_pure_dict(params)
        pairs = [(layers[name]["kernel"].T, layers[name]["bias"]) for name in ("inner", "outer")]
        return {f"linear_{k}": {"weight": w, "bias": b} for k, (w, b) in enumerate(pairs)}

    same = TrainState.create({"params": as_linen(state.params)}, tx)
    step, linen_step = jit_step(tx, model), jit_step(tx)
    for _ in range(3):
        state, metrics = step(state, toy)
        same, expected = linen_step(same, toy)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert_close(as_linen(state.params), same.params["params"], 1e-6)


def test_computing_in_bfloat16(toy):
    """The products are bfloat16's; parameters, scores and loss stay float32 and close by."""
    model, tx = MLP(hidden=(8,), dtype=jnp.bfloat16), optax.sgd(0.1)
    state, step = TrainState.create(PARAMS, tx), jit_step(tx, model)
    program = str(jax.make_jaxpr(step)(state, toy))
    products = [line for line in program.split("\n") if "dot_general" in line]
    assert len(products) == 5  # two forwards and three backwards
    assert all(":bf16[" in line for line in products)
    new, metrics = step(state, toy)
    _, expected = jit_step(tx)(state, toy)
    assert {leaf.dtype for leaf in jax.tree.leaves((new.params, metrics))} == {np.dtype("f4")}
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.02)
    assert metrics["loss"] != expected["loss"]


@pytest.mark.slow
def test_under_disable_jit_and_x64(toy):
    """The run gives the jitted numbers, int32 steps and no wider floats."""
    few, tx = Dataset(toy.images[:10], toy.labels[:10]), optax.sgd(0.1)
    step, state = (
        make_train_step(classifier_objective(LINEAR.apply), tx),
        TrainState.create(WEIGHTS, tx),
    )
    for remainder in ("pad", "short", "drop"):

        def run(state, remainder=remainder):
            return train(step, state, few, KEY, epochs=2, batch_size=4, remainder=remainder)

        expected = jax.jit(run)(state)
        with jax.disable_jit():
            assert_close(run(state), expected, 2e-6)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            wide = jax.jit(run)(state)
        assert_close(wide, expected, 2e-6)
        assert jax.tree.map(lambda x: x.dtype, wide) == jax.tree.map(lambda x: x.dtype, expected)
