"""jaxmnist inside your own program: a loop of single steps, and many models at once.

Both are timed against the scanned epoch of one model, after compiling, and must train the same. So
are the epoch's matmuls with nothing around them: the rest of its time is all that code could save.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import numpy as np
import optax
from _job import BATCH, RATE, load

from jaxmnist import (
    MLP,
    Dataset,
    TrainState,
    batches,
    classifier_objective,
    epoch_order,
    init_state,
    make_train_epoch,
    make_train_step,
    train,
)
from jaxmnist.population import compile_population, run_population
from jaxmnist.runs.machine import cpu_cores

EPOCHS = 2
POPULATIONS = {"cpu": (8,), "gpu": (8, 32, 1024)}

# Each core a device, for the models that are trained at once; what trains one uses the first only.
# With one thread there is but one device, since XLA starts a thread for each at least.
cores = int(os.environ.get("PJRT_NPROC", cpu_cores()))
jax.config.update("jax_num_cpu_devices", cores)

images, labels, *_ = load()
host = Dataset(images.reshape(-1, 28, 28), labels)
dataset = jax.device_put(host)
n, steps = len(labels), EPOCHS * -(-len(labels) // BATCH)
model, tx = MLP(), optax.sgd(RATE)
train_step = make_train_step(classifier_objective(model.apply), tx)
step = jax.jit(train_step, donate_argnums=0)


def one_epoch(state: TrainState, dataset: Dataset, key: jax.Array, epoch: int) -> Any:
    """The next state and the mean loss of the epoch."""
    order = epoch_order(key, epoch, n)
    state, metrics = make_train_epoch(train_step, BATCH)(state, dataset, order)
    return state, metrics["loss"].mean()


def init(key: jax.Array) -> TrainState:
    """The state before the first step."""
    return init_state(model, tx, key)


def timed(run: Callable[[], Any]) -> tuple[float, np.ndarray]:
    """Seconds, and what `run` gives."""
    start = time.perf_counter()
    result = jax.device_get(run())
    return time.perf_counter() - start, result


def scanned(epoch_fn: Any, state: TrainState, key: jax.Array) -> Callable[[], Any]:
    """The epochs as one call each; gives the loss of the last."""

    def run() -> Any:
        nonlocal state
        for epoch in range(EPOCHS):
            state, loss = epoch_fn(state, dataset, key, epoch)
        return loss

    return run


def loop(state: TrainState) -> Any:
    """The epochs as single steps on host batches; gives the loss of the last."""
    for epoch in range(EPOCHS):
        losses = []
        for batch in batches(host, BATCH, epoch=epoch):
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
    return np.mean(jax.device_get(losses))


def matmuls(weights: list[jax.Array], rows: jax.Array) -> list[jax.Array]:
    """The step's eight matmuls and the update of the weights as steps of their own, no more."""

    def forward(weights: list[jax.Array]) -> jax.Array:
        return reduce(lambda x, weight: x @ weight.T, weights, rows)

    def product_step(weights: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
        outputs, backward = jax.vjp(forward, weights)
        (grads,) = backward(outputs)
        # So little that nothing overflows.
        return jax.tree.map(lambda weight, grad: weight - 1e-12 * grad, weights, grads), None

    return jax.lax.scan(product_step, weights, None, length=steps)[0]


def member(seed_and_rate: tuple[jax.Array, jax.Array], dataset: Dataset) -> jax.Array:
    """The whole training of one of many models; gives the mean loss of the last epoch."""
    seed, rate = seed_and_rate
    key, tx = jax.random.key(seed), optax.sgd(rate)
    member_step = make_train_step(classifier_objective(model.apply), tx)
    state = init_state(model, tx, key)
    _, metrics = train(member_step, state, dataset, key, epochs=EPOCHS, batch_size=BATCH)
    return metrics["loss"][-1].mean()


key = jax.random.key(0)
states = [jax.jit(init)(key) for _ in range(4)]
for size in (BATCH, n % BATCH):  # compiles both sizes
    step(states.pop(), next(batches(host, size)))
single = jax.jit(one_epoch, donate_argnums=0).lower(states[0], dataset, key, 0).compile()
scan_seconds, scan_loss = timed(scanned(single, states.pop(), key))
weights = [layer["weight"] for layer in jax.jit(init)(key).params["params"].values()]
rows = jax.device_put(images[:BATCH] / np.float32(255))
only_matmuls = jax.jit(matmuls, donate_argnums=0).lower(weights, rows).compile()
matmul_seconds, trained = timed(lambda: only_matmuls(weights, rows))
assert all(np.isfinite(weight).all() for weight in trained)
loop_seconds, loop_loss = timed(lambda: loop(states.pop()))
np.testing.assert_allclose(loop_loss, scan_loss, rtol=1e-3)

result: dict[str, Any] = {
    "scan_us_per_step": scan_seconds / steps * 1e6,
    "matmuls_alone_us_per_step": matmul_seconds / steps * 1e6,
    "matmuls_alone_to_scan": matmul_seconds / scan_seconds,
    "loop_us_per_step": loop_seconds / steps * 1e6,
    "loop_to_scan": loop_seconds / scan_seconds,
}
for size in POPULATIONS.get(jax.default_backend(), (8,)):
    members = np.arange(size, dtype=np.uint32), np.full(size, RATE, np.float32)
    population = compile_population(member, members, host)
    seconds, losses = timed(partial(run_population, population, members))
    np.testing.assert_allclose(losses[0], scan_loss, rtol=1e-3)
    result[f"models_{size}_us_per_step"] = seconds / size / steps * 1e6
    result[f"models_{size}_to_scan"] = seconds / size / scan_seconds
print(json.dumps(result))
