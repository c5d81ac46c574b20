"""jaxmnist's scanned epochs, of one model or of many: the program of `benchmark.py --growth`."""

import time

import jax
import numpy as np
import optax
from _job import BATCH, EPOCHS, MODELS, RATE, SIZES, load, report

import jaxmnist
from jaxmnist import Dataset, TrainState
from jaxmnist.population import compile_population, run_population
from jaxmnist.runs.machine import use_cpu_cores

if MODELS > 1:
    use_cpu_cores()
model, tx = jaxmnist.MLP(hidden=SIZES[1:-1]), optax.sgd(RATE)
train_step = jaxmnist.make_train_step(jaxmnist.classifier_objective(model.apply), tx)


@jax.jit
def init(seed: jax.Array) -> TrainState:
    """The state before the first step, without a key, which the host cannot hold."""
    return jaxmnist.init_state(model, tx, jax.random.key(seed))._replace(key=None)


def run(member: tuple[jax.Array, TrainState], dataset: Dataset) -> jax.Array:
    """The mean loss of the last epoch."""
    seed, state = member
    key, options = jax.random.key(seed), {"epochs": EPOCHS, "batch_size": BATCH}
    _, metrics = jaxmnist.train(train_step, state, dataset, key, **options)
    return metrics["loss"][-1].mean()


seeds = np.arange(MODELS, dtype=np.uint32)
members = jax.device_get((seeds, jax.vmap(init)(seeds)))
population = compile_population(run, members, Dataset(*load()))
run_population(population, members)  # the first call takes longer; the peers have run a step, too
start = time.perf_counter()
losses = run_population(population, members)
report(time.perf_counter() - start, losses.mean())
