"""jaxmnist's scanned epochs, of one model or of many: the program of `benchmark.py --growth`."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from _job import BATCH, EPOCHS, MODELS, RATE, SIZES, load, report

import jaxmnist
from jaxmnist import TrainState
from jaxmnist.population import compile_population, run_population
from jaxmnist.runs.machine import cpu_cores

if MODELS > 1:
    jax.config.update("jax_num_cpu_devices", cpu_cores())
data = load()
dataset = jaxmnist.Dataset(data["images"].reshape(-1, 28, 28), data["labels"])
model, tx = jaxmnist.MLP(hidden=SIZES[1:-1]), optax.sgd(RATE)
train_step = jaxmnist.make_train_step(jaxmnist.classifier_objective(model.apply), tx)


@jax.jit
def init(seed: jax.Array) -> TrainState:
    """The state before the first step, without a key, which the host cannot hold."""
    return jaxmnist.init_state(model, tx, jax.random.key(seed))._replace(key=None)


def run(member: tuple[jax.Array, TrainState], dataset: jaxmnist.Dataset) -> tuple[Any, jax.Array]:
    """The parameters after all epochs, and the mean loss of the last."""
    seed, state = member
    key, options = jax.random.key(seed), {"epochs": EPOCHS, "batch_size": BATCH}
    state, metrics = jaxmnist.train(train_step, state, dataset, key, **options)
    return state.params, metrics["loss"][-1].mean()


seeds = np.arange(MODELS, dtype=np.uint32)
if MODELS > 1:
    members = jax.device_get((seeds, jax.vmap(init)(seeds)))
    program = partial(run_population, compile_population(run, members, dataset), members)
else:
    arguments = jax.device_put(((seeds[0], init(seeds[0])), dataset))
    program = partial(jax.jit(run).lower(*arguments).compile(), *arguments)

jax.block_until_ready(program())  # the first call takes longer; the peers have run a step, too
start = time.perf_counter()
params, loss = jax.block_until_ready(program())
seconds = time.perf_counter() - start

params = jax.tree.map(lambda leaf: leaf[0], params) if MODELS > 1 else params
test = jaxmnist.Dataset(data["test_images"].reshape(-1, 28, 28), data["test_labels"])
found = jaxmnist.evaluate(jaxmnist.classifier_metrics(model.apply), params, test)
report(seconds, np.mean(loss), found["accuracy"])
