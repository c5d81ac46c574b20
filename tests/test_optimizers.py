"""The optimizers by name, and their schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist.optimizers import make_optimizer, make_schedule
from tests.helpers import assert_close


@pytest.fixture(autouse=True)
def _usual_promotion():
    """optax promotes an integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


PARAMS = {"w": jnp.arange(6.0).reshape(2, 3) - 2}


@pytest.mark.parametrize(
    ("optimizer", "options", "tx"),
    [
        ("sgd", {}, optax.sgd(0.1)),
        ("sgd", {"momentum": 0.9}, optax.sgd(0.1, momentum=0.9)),
        ("adam", {"weight_decay": 0}, optax.adam(0.1)),
        ("adamw", {}, optax.adamw(0.1, weight_decay=1e-4)),
        ("adamw", {"weight_decay": 0.3}, optax.adamw(0.1, weight_decay=0.3)),
        ("sgd", {"schedule": "cosine", "steps": 2}, optax.sgd(0.1)),
        ("sgd", {"warmup": 0.5, "steps": 4}, optax.sgd(0.05)),
    ],
)
def test_each_name_is_its_optimizer(optimizer, options, tx):
    ours = make_optimizer(optimizer, 0.1, **options)
    grads = {"w": jnp.ones((2, 3)) / 3}
    expected, found = (t.update(grads, t.init(PARAMS), PARAMS)[0] for t in (tx, ours))
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        ("adam", {"momentum": 0.9}, "momentum is for SGD only, not for adam"),
        ("sgd", {"weight_decay": 0.1}, "weight_decay is for AdamW only, not for sgd"),
        ("lion", {}, 'must be "sgd", "adam" or "adamw", not \'lion\''),
        ("sgd", {"schedule": "step"}, 'must be "constant" or "cosine", not \'step\''),
    ],
)
def test_what_an_optimizer_has_not(optimizer, options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(optimizer, 0.1, **options)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_schedule_is_optaxs_whether_traced_or_not(schedule):
    """optax counts the rise from 0, ours from the first step; then they are the same."""
    steps, warmup = np.arange(100), 0.2
    fall = optax.cosine_decay_schedule(0.1, 80) if schedule == "cosine" else lambda step: 0.1
    expected = [0.1 * (s + 1) / 20 if s < 20 else float(fall(s - 20)) for s in steps]
    plain = jax.jit(make_schedule(schedule, 0.1, warmup=warmup, steps=100))
    rate = jax.jit(lambda w, r, s: make_schedule(schedule, r, warmup=w, steps=100)(s))
    np.testing.assert_allclose([plain(s) for s in steps], expected, rtol=2e-5, atol=1e-8)
    for s in steps:
        assert rate(jnp.float32(warmup), jnp.float32(0.1), s) == plain(s)  # to the bit
    traced = jax.jit(lambda m: make_optimizer("sgd", 0.1, momentum=m).init(PARAMS))(0.0)
    assert jax.tree.leaves(traced)  # a traced momentum has its trace, even if it is 0
