"""Training goes wherever a pure function goes: any transformation, optimizer, model and loss."""

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import linen, nnx
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
    norms,
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


class Pair(NamedTuple):
    """A model that needs no library: two functions."""

    init: Callable
    apply: Callable


def start(tx, params=PARAMS):
    return TrainState(jnp.int32(0), params, tx.init(params))


def jit_step(tx, loss_fn=cross_entropy, model=MODEL):
    return jax.jit(make_train_step(classifier_objective(model.apply, loss_fn), tx))


def stateful(params, batch, *, key, model_state, where):
    """Dropout of a linear model's inputs, and their running mean, which is taken off them."""
    images = preprocess(batch.images)
    rows = None if where is None else where[:, None]
    mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(images, axis=0, where=rows)
    kept = jax.random.bernoulli(key, 0.8, images.shape)
    logits = LINEAR.apply(params, jnp.where(kept, images - mean[None], 0))
    kept = jnp.mean(kept.astype(jnp.float32), where=rows)
    return cross_entropy(logits, batch.labels), {"kept": kept}, {"mean": mean}


# The notebook's objective, and one that uses all that a state may hold.
OBJECTIVES = {"notebook": classifier_objective(LINEAR.apply), "key and model state": stateful}
REST = {
    "notebook": {},
    "key and model state": {"model_state": {"mean": jnp.zeros(784)}, "key": jax.random.key(1)},
}


def total(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


def double(tree):
    def both(x):
        return jnp.stack([x, x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else 2 * x])

    return jax.tree.map(both, tree)


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def run_of(kind, data, objective, rest):
    """`run(params, rate) -> (params, losses, rest)`: one step, one epoch or a whole run."""

    def run(params, rate):
        tx = optax.sgd(rate)
        step = make_train_step(objective, tx)
        state = start(tx, params)._replace(**rest)
        if kind == "step":
            state, metrics = step(state, data)
        elif kind == "epoch":
            state, metrics = make_train_epoch(step)(state, data, np.arange(100))
        else:
            state, metrics = train(step, state, data, KEY, epochs=2)
        return state.params, metrics.pop("loss"), (state.model_state, metrics)

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
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
    everywhere = PartitionSpec()
    return jax.shard_map(f, mesh=mesh, in_specs=everywhere, out_specs=everywhere)


THROUGH = {
    "vmap": lambda f: jax.jit(lambda *args: first(jax.vmap(f)(*double(args)))),
    "grad of checkpoint": lambda f: jax.jit(with_gradient(jax.checkpoint(f))),
    "jvp": lambda f: jax.jit(lambda *args: if_finite(*jax.jvp(f, args, args))),
    "scan": lambda f: jax.jit(lambda *args: first(jax.lax.map(lambda a: f(*a), double(args)))),
    "vmap of grad": lambda f: jax.jit(
        lambda *args: first(jax.vmap(with_gradient(f))(*double(args)))
    ),
    "shard_map": lambda f: jax.jit(on_a_mesh(f)),
    "ahead of time": lambda f: lambda *args: jax.jit(f).lower(*args).compile()(*args),
    "export": lambda f: lambda *args: jax.export.export(jax.jit(f))(*args).call(*args),
}


@pytest.fixture(scope="module")
def plain():
    """What each kind of run gives under nothing but jit."""
    results = {}

    def result(kind, name, data):
        if (kind, name) not in results:
            run = run_of(kind, data, OBJECTIVES[name], REST[name])
            results[kind, name] = jax.jit(run)(WEIGHTS, RATE)
        return results[kind, name]

    return result


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("kind", ["step", pytest.param("epoch", marks=pytest.mark.slow), "train"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_composes(toy, plain, name, kind, through):
    """The result is the one without the transformation, and the step is traced once."""
    objective = counting(OBJECTIVES[name])
    run = run_of(kind, toy, objective, REST[name])
    result = THROUGH[through](run)(WEIGHTS, RATE)
    assert_close(result, plain(kind, name, toy), 2e-6)
    assert objective.traces == 1
    assert jax.eval_shape(run, WEIGHTS, RATE)[1].shape == result[1].shape


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_grid_of_seeds_and_learning_rates(toy, name):
    """Each member is the single run; its initial weights, shuffles and masks are the key's."""
    objective = counting(OBJECTIVES[name])

    def run(key, rate):
        tx = optax.sgd(rate)
        state = init_state(LINEAR, tx, key)._replace(model_state=REST[name].get("model_state"))
        step = make_train_step(objective, tx, log=norms)
        return train(step, state, toy, key, epochs=2, batch_size=40)

    keys, rates = jax.random.split(KEY, 3), jnp.array([0.01, 0.1, 0.3])
    states, metrics = jax.jit(jax.vmap(run))(keys, rates)
    assert objective.traces == 1
    assert all(values.shape == (3, 2, 3) for values in metrics.values())
    single = jax.jit(run)
    for i in range(3):
        state, one = single(keys[i], rates[i])
        for metric, values in one.items():
            np.testing.assert_allclose(metrics[metric][i, 0], values[0], rtol=1e-6)
        assert_close(jax.tree.map(lambda x, i=i: x[i], states), state, 1e-5)
    for values in (metrics["loss"], metrics.get("kept", metrics["loss"])):
        assert len(np.unique(values[:, 0, 0])) == 3


def hypergradient_of(data, optimizer, wrap=lambda step: step):
    """The held-out loss after 20 steps, as a function of hyperparameters and initial weights."""
    held_out = jnp.float64(data.images[80:].reshape(20, -1)) / 127.5 - 1

    def transform(images):
        return images.reshape(4, -1) / jnp.float64(127.5) - 1

    def objective(hyper, params):
        tx = optimizer(hyper["rate"], hyper["momentum"])
        step = make_train_step(classifier_objective(MODEL.apply, transform=transform), tx)
        epoch = make_train_epoch(wrap(step), 4)
        state, metrics = epoch(start(tx, params), data, np.arange(80))
        assert metrics["loss"].shape == (20,)
        return cross_entropy(MODEL.apply(state.params, held_out), data.labels[80:]).mean()

    return objective


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda rate, momentum: optax.sgd(rate, momentum),
        lambda rate, momentum: optax.chain(
            optax.clip_by_global_norm(1.0),
            # At a gradient of 0 the root's derivative is infinite, which eps_root is for.
            optax.adam(lambda step: rate * 0.9**step, b1=momentum, eps_root=1e-8),
        ),
    ],
    ids=["sgd", "clipped adam with a schedule"],
)
def test_hypergradients_equal_central_differences(toy, optimizer):
    """In float64, backwards and forwards through 20 steps."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        objective = hypergradient_of(toy, optimizer)
        hyper = {"rate": jnp.float64(0.03), "momentum": jnp.float64(0.8)}
        at = hyper, jax.tree.map(jnp.float64, PARAMS)
        value_and_grads = jax.jit(jax.value_and_grad(objective, (0, 1)))
        jvp = jax.jit(lambda at, direction: jax.jvp(objective, at, direction)[1])
        grads = value_and_grads(*at)[1]

        still = jax.tree.map(jnp.zeros_like, at)
        rng = np.random.default_rng(0)
        some = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), at[1])
        for direction in (
            (still[0] | {"rate": jnp.float64(1)}, still[1]),
            (still[0] | {"momentum": jnp.float64(1)}, still[1]),
            (still[0], some),
        ):
            there, back = (
                value_and_grads(*jax.tree.map(lambda x, d, e=e: x + e * d, at, direction))[0]
                for e in (1e-6, -1e-6)
            )
            gradient = total(jax.tree.map(lambda g, d: g * d, grads, direction))
            assert abs(gradient) > 1e-3
            np.testing.assert_allclose(gradient, (there - back) / 2e-6, rtol=1e-5)
            np.testing.assert_allclose(jvp(at, direction), gradient, rtol=1e-9)


@pytest.mark.slow
def test_checkpointed_steps_need_less_memory(toy):
    """For the same gradient: what is kept of each step is then its state, not its images."""

    def compiled(wrap):
        def objective(rate):
            tx = optax.sgd(rate)
            step = make_train_step(classifier_objective(MODEL.apply), tx)
            epoch = make_train_epoch(wrap(step), 100)
            return epoch(start(tx), toy, np.tile(np.arange(100), 20))[1]["loss"][-1]

        return jax.jit(jax.grad(objective)).lower(RATE).compile()

    plain, checkpointed = compiled(lambda step: step), compiled(jax.checkpoint)
    np.testing.assert_allclose(checkpointed(RATE), plain(RATE), rtol=1e-4)
    needed = [run.memory_analysis().temp_size_in_bytes for run in (plain, checkpointed)]
    assert needed[1] < needed[0] / 2


def test_per_example_gradients_average_to_the_batchs(toy):
    def loss(params, image, label):
        return cross_entropy(MODEL.apply(params, preprocess(image[None])), label[None])[0]

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(PARAMS, *toy)
    new, _ = jit_step(optax.sgd(1.0))(start(optax.sgd(1.0)), toy)
    taken = jax.tree.map(lambda old, new: old - new, PARAMS, new.params)
    assert_close(jax.tree.map(lambda g: g.mean(axis=0), each), taken, 1e-5)


def test_hessian_vector_product_equals_differences_of_the_gradient(toy):
    with jax.enable_x64(True):
        images = jnp.float64(toy.images.reshape(100, -1)) / 127.5 - 1
        gradient = jax.jit(
            jax.grad(lambda params: cross_entropy(MODEL.apply(params, images), toy.labels).mean())
        )
        params = jax.tree.map(jnp.float64, PARAMS)
        rng = np.random.default_rng(0)
        v = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
        product = jax.jit(lambda p, v: jax.jvp(gradient, (p,), (v,))[1])(params, v)
        there, back = (
            gradient(jax.tree.map(lambda p, v, e=e: p + e * v, params, v)) for e in (1e-6, -1e-6)
        )
        assert_close(product, jax.tree.map(lambda a, b: (a - b) / 2e-6, there, back), 1e-6)


@pytest.mark.slow
def test_nothing_is_donated_unless_the_caller_says_so(toy):
    """Eagerly differentiated and vmapped, a step that donates deletes what it was given."""
    tx = optax.sgd(0.1, momentum=0.9)
    state = init_state(LINEAR, tx, KEY)
    state, batch = mine = jax.tree.map(jnp.array, (state, toy))
    step = make_train_step(classifier_objective(LINEAR.apply), tx)
    expected, _ = jax.jit(step)(*mine)
    jax.vmap(step, (0, None))(double(state), batch)
    jax.grad(lambda params: step(state._replace(params=params), batch)[1]["loss"])(state.params)
    make_train_epoch(step, 50)(state, Dataset(*batch), jnp.arange(100))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(mine))
    new, _ = jax.jit(step, donate_argnums=0)(*mine)
    assert_close(new, expected, 1e-6)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))


def test_export_with_a_symbolic_batch_size(toy, monkeypatch):
    """One program takes batches of any size."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # JAX's "n" is no `int` to it
    tx = optax.sgd(0.1, momentum=0.9)
    step = make_train_step(classifier_objective(MODEL.apply), tx)
    (n,) = jax.export.symbolic_shape("n")
    images, labels = jax.ShapeDtypeStruct((n, 28, 28), "u1"), jax.ShapeDtypeStruct((n,), "i4")
    program = jax.export.export(jax.jit(step))(
        jax.eval_shape(lambda: start(tx)), Dataset(images, labels)
    )
    for size in (1, 64):
        batch = Dataset(toy.images[:size], toy.labels[:size])
        assert_close(program.call(start(tx), batch), jit_step(tx)(start(tx), batch), 2e-6)


@pytest.mark.slow
def test_shard_map_over_three_devices():
    """A loss that averages over the mesh gives a single device's step on the joined batch."""
    code = """
import jax
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec as P

import jaxmnist as jm

jax.config.update("jax_num_cpu_devices", 3)  # importing has started no backend
rng = np.random.default_rng(0)
batch = jm.Dataset(rng.integers(0, 256, (60, 28, 28), np.uint8), rng.integers(0, 10, 60, np.int32))
model, tx = jm.MLP((8,)), optax.sgd(0.1, momentum=0.9)
state = jm.init_state(jax.random.key(0), model, tx)
mesh = jax.make_mesh((3,), ("data",), (AxisType.Auto,))
mean = lambda logits, labels: jax.lax.pmean(jm.cross_entropy(logits, labels).mean(), "data")
step = jax.shard_map(
    jm.make_train_step(jm.classifier_objective(model.apply, mean), tx),
    mesh=mesh,
    in_specs=(P(), P("data")),
    out_specs=P(),
)
got = jax.jit(step)(state, batch)
expected = jax.jit(jm.make_train_step(jm.classifier_objective(model.apply), tx))(state, batch)
assert len(got[1]["loss"].sharding.device_set) == 3
for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_micro_batches_accumulate_to_one_step(toy):
    """The notebook's gradient accumulation: four batches of 16 are one step on 64 images."""
    inner = optax.sgd(0.1, momentum=0.9)
    expected, _ = jit_step(inner)(start(inner), Dataset(toy.images[:64], toy.labels[:64]))
    tx = optax.MultiSteps(inner, 4)
    state, step = start(tx), jit_step(tx)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 and float
        for i in range(0, 64, 16):
            assert_close(state.params, PARAMS, 0)  # nothing moves before the last of them
            state, _ = step(state, Dataset(toy.images[i : i + 16], toy.labels[i : i + 16]))
    assert_close(state.params, expected.params, 1e-6)
    assert np.abs(total(state.params) - total(PARAMS)) > 1e-3


def test_schedules_clipping_and_injected_hyperparameters(toy):
    """Each against gradient descent written out, at the rates that it amounts to."""
    batch, rates = toy, (0.1, 0.03, 0.01)
    images = preprocess(toy.images)
    grad = jax.jit(jax.grad(lambda p: cross_entropy(MODEL.apply(p, images), toy.labels).mean()))
    scheduled = optax.sgd(lambda step: jnp.array(rates)[step])
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    steps = jit_step(scheduled), jit_step(injected)
    states, expected = [start(scheduled), start(injected)], PARAMS
    for rate in rates:
        expected = jax.tree.map(lambda p, g, r=rate: p - r * g, expected, grad(expected))
        states[1].opt_state.hyperparams["learning_rate"] = jnp.float32(rate)
        states = [step(state, batch)[0] for step, state in zip(steps, states, strict=True)]
        for state in states:
            assert_close(state.params, expected, 1e-6)

    clipped = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0))
    new = jit_step(clipped)(start(clipped), batch)[0]
    squares = jax.tree.map(lambda a, b: (a - b) ** 2, new.params, PARAMS)
    np.testing.assert_allclose(total(squares) ** 0.5, 0.01, rtol=1e-4)


def test_optimizers_that_look_at_the_loss(toy):
    """A line search that tries losses, and a rate that is halved where they no longer fall."""
    tx = optax.chain(optax.sgd(30.0), optax.scale_by_backtracking_linesearch(20))
    state, step, losses = start(tx), jit_step(tx), []
    for _ in range(4):
        state, metrics = step(state, toy)
        losses.append(metrics["loss"])
    assert np.all(np.diff(losses) < 0)  # at a rate of 30, which is far too large
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.9)
    tx = optax.chain(optax.sgd(0.1), plateau)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 and float
        state, step = start(tx), jit_step(tx)
        for _ in range(2):
            state, metrics = step(state, toy)
    assert metrics["loss"] > 0.1 * losses[0]
    np.testing.assert_allclose(state.opt_state[1].best_value, losses[0], rtol=1e-6)
    assert state.opt_state[1].scale == 0.5


def nnx_mlp():
    """The same network as MODEL, as an NNX module split into its structure and its weights."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(784, 8, rngs=rngs)
            self.outer = nnx.Linear(8, 10, rngs=rngs)

        def __call__(self, images):
            return self.outer(nnx.relu(self.inner(images)))

    structure = nnx.graphdef(Net(nnx.Rngs(0)))
    return Pair(
        lambda key, images: nnx.state(Net(nnx.Rngs(key))),
        lambda params, images: nnx.merge(structure, params)(images),
    )


def test_an_nnx_module_trains_as_the_linen_module_with_its_weights(toy):
    tx = optax.sgd(0.1, momentum=0.9)
    model = nnx_mlp()
    state = init_state(model, tx, KEY)

    def as_linen(params):
        layers = nnx.to_pure_dict(params)
        pairs = [(layers[name]["kernel"].T, layers[name]["bias"]) for name in ("inner", "outer")]
        return {f"linear_{k}": {"weight": w, "bias": b} for k, (w, b) in enumerate(pairs)}

    same = start(tx, {"params": as_linen(state.params)})
    step, linen_step = jit_step(tx, model=model), jit_step(tx)
    for _ in range(3):
        state, metrics = step(state, toy)
        same, expected = linen_step(same, toy)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert_close(as_linen(state.params), same.params["params"], 1e-6)


def test_any_linen_module_on_any_image(toy):
    """A convolution on whole images, which another transform hands over."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, images):
            x = linen.relu(linen.Conv(2, (5, 5), strides=4)(images))
            return linen.Dense(10)(x.reshape(len(x), -1))

    def transform(images):
        return images[..., None].astype(np.float32) / 255

    tx = optax.sgd(0.1)
    state = init_state(Net(), tx, KEY, np.zeros((28, 28, 1), np.float32))
    step = jax.jit(make_train_step(classifier_objective(Net().apply, transform=transform), tx))
    losses = []
    for _ in range(5):
        state, metrics = step(state, toy)
        losses.append(metrics["loss"])
    assert np.all(np.diff(losses) < 0)


def test_computing_in_bfloat16(toy):
    """The products are bfloat16's; parameters, scores and loss stay float32 and close by."""
    model, tx, batch = MLP(hidden=(8,), dtype=jnp.bfloat16), optax.sgd(0.1), toy
    step = jit_step(tx, model=model)
    program = str(jax.make_jaxpr(step)(start(tx), batch))
    products = [line for line in program.split("\n") if "dot_general" in line]
    assert len(products) == 5  # two forwards and three backwards
    assert all(":bf16[" in line for line in products)
    assert model.apply(PARAMS, preprocess(toy.images)).dtype == np.float32
    losses, expected = [], []
    for train_step, results in ((step, losses), (jit_step(tx), expected)):
        state = start(tx)
        for _ in range(5):
            state, metrics = train_step(state, batch)
            results.append(metrics["loss"])
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(np.float32)}
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert losses != expected
    assert losses[-1] < losses[0]
