"""Every optimizer of optax, listed from the package, trains: plain, donated, by epochs, resumed."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxmnist import TrainState, batches, init_state, make_train_epoch, make_train_step
from jaxmnist.runs import checkpoint
from tests.helpers import assert_close

pytestmark = pytest.mark.stress  # compiles for minutes
KEY = jax.random.key(0)
SGD = optax.sgd(0.01)
# What functions with other required arguments than a learning rate are called with; and contrib's
# building blocks, with what makes an optimizer of each.
MADE = {
    "differentially_private_aggregate": lambda f: optax.chain(
        f(1.0, 0.1, key=jax.random.key(0)), SGD
    ),
    "dpsgd": lambda f: f(0.01, 1.0, 0.1, seed=0),
    "lookahead": lambda f: f(SGD, 2, 0.5),
    "mechanize": lambda f: f(SGD),
    "MultiSteps": lambda f: f(SGD, 2),
    "noisy_sgd": lambda f: f(0.01, key=jax.random.key(0)),
    "normalize": lambda f: optax.chain(f(), SGD),
    "reduce_on_plateau": lambda f: optax.chain(SGD, f()),
    "sam": lambda f: f(SGD, optax.chain(optax.contrib.normalize(), optax.sgd(0.05))),
    "sam, opaque": lambda f: f(
        SGD, optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), 2, opaque_mode=True
    ),
    "schedule_free": lambda f: f(SGD, 0.01),
    "split_real_and_imaginary": lambda f: f(optax.adam(0.01)),
}
# What an optimizer is made from: it is no optimizer itself, and its optimizers are in this list.
BLOCKS = ("optax._src.base", "optax._src.transform", "optax._src.linesearch", "optax.transforms.")
NO_OPTIMIZER = {
    "inject_hyperparams": "makes one of a function and its arguments: test_transformations.py",
    "inject_stateful_hyperparams": "likewise",
    "hutchinson_estimator_diag_hessian": "estimates a Hessian, for sophia",
    "optimistic_adam": "deprecated: optimistic_adam_v2",
}


def makes_one(function) -> bool:
    """It is said to return a gradient transformation, or does so for a learning rate."""
    if "GradientTransformation" in str(inspect.signature(function).return_annotation):
        return True
    try:
        made = function(**({"learning_rate": 0.01} if needed(function) else {}))
    except Exception:
        return False
    return isinstance(made, optax.GradientTransformation)


def needed(function) -> list[str]:
    """The arguments that have no default."""
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(function).parameters.items()
    return [name for name, p in parameters if p.default is p.empty and p.kind not in kinds]


def optimizers():
    """By name; a new one of optax's, or one that went, is seen here."""
    found = {"MultiSteps": optax.MultiSteps, "sam, opaque": optax.contrib.sam}
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if inspect.isfunction(function) or hasattr(function, "func"):  # or a partial
                block = name.startswith("scale_by_") or function.__module__.startswith(BLOCKS)
                if not name.startswith("_") and not block and makes_one(function):
                    found[name] = function
    return found


OPTIMIZERS = optimizers()


def make(name):
    function = OPTIMIZERS[name]
    if name in MADE:
        return MADE[name](function)
    return function(0.01) if "learning_rate" in needed(function) else function()


def squared_error(params, batch):
    return jnp.sum((batch["x"] @ params["w"] + params["b"][None] - batch["y"]) ** 2, axis=1)


def per_example(scalar):
    """A gradient for each example and the mean loss, which a private optimizer clips and adds."""

    def each(params, batch, *rest):
        def one(row):
            return jax.value_and_grad(scalar, has_aux=True)(
                params, jax.tree.map(lambda x: x[None], row), *rest
            )

        (losses, aux), grads = jax.vmap(one, out_axes=((0, None), 0))(batch)
        return (losses.mean(), aux), grads

    return each


def of_the_fast_ones(scalar):
    """Lookahead has two sets of parameters, and trains one."""

    def fast(params, *rest):
        def loss(fast):
            return scalar(fast, *rest)

        return jax.value_and_grad(loss, has_aux=True)(params.fast)

    return fast


GRADIENTS = {
    "differentially_private_aggregate": {"value_and_grad": per_example},
    "dpsgd": {"value_and_grad": per_example},
    "lookahead": {"value_and_grad": of_the_fast_ones},
}


class Model:
    """Parameters for `squared_error`."""

    @staticmethod
    def init(key, images):
        return {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)} | {
            "b": jnp.zeros(3)
        }

    apply = None


def start(name, tx):
    if name == "lookahead":
        params = Model.init(None, None)
        both = optax.LookaheadParams(params, jax.tree.map(jnp.copy, params))
        return jax.tree.map(jnp.copy, TrainState(jnp.int32(0), both, tx.init(both)))
    return init_state(Model, tx, KEY, np.zeros(4, np.float32))


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4)).astype(np.float32)
    return {"x": x, "y": x @ rng.normal(size=(4, 3)).astype(np.float32)}


def run(step, state, epochs=(0, 1)):
    """The state and the loss of each step."""
    losses = []
    for epoch in epochs:
        for batch in batches(data(), 4, order=np.arange(20)[:: 1 - 2 * epoch]):
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
    return state, losses


def test_the_list_is_whole():
    """What the package has today is in the list, and the tables name nothing else."""
    assert {"adam", "sgd", "nadamw", "lbfgs", "dog", "muon", "sophia", "prodigy"} < set(OPTIMIZERS)
    assert len(OPTIMIZERS) >= 60
    assert set(MADE) | set(GRADIENTS) | set(NO_OPTIMIZER) <= set(OPTIMIZERS)


@pytest.mark.filterwarnings('ignore:"seed" is deprecated')  # by optax's own dpsgd
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in NO_OPTIMIZER])
def test_an_optimizer(name, tmp_path):
    tx = make(name)
    step = make_train_step(squared_error, tx, **GRADIENTS.get(name, {}))
    plain = jax.jit(step)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = start(name, tx)
        first, before = run(plain, state, (0,))
        last, after = run(plain, first, (1,))
        losses = [*before, *after]
        assert np.isfinite(losses).all()
        assert last.step == 10
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, last.params)
        assert all(jax.tree.leaves(moved))
        # The first state of lbfgs, as optax makes it, has weak types, which the next ones have not.
        assert plain._cache_size() == (2 if name == "lbfgs" else 1)

        path = checkpoint.save(tmp_path, first)
        resumed = run(plain, checkpoint.load(path, jax.eval_shape(lambda: first)).state, (1,))
        assert_close(resumed, (last, after), 0)

        epoch, by_epochs = jax.jit(make_train_epoch(step, 4)), state
        rows = []
        for order in (np.arange(20), np.arange(20)[::-1]):
            by_epochs, metrics = epoch(by_epochs, data(), order)
            rows.extend(metrics["loss"])
        assert_close(rows, losses, 1e-4)
        assert_close(by_epochs.params, last.params, 1e-4)

        donated = run(jax.jit(step, donate_argnums=0), state)  # the state is gone after it
        assert_close(donated, (last, losses), 1e-5)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
