"""jaxmnist's scanned epochs, of one model or of a population: the program of `--scale`."""

import time
from functools import partial

import jax
import numpy as np
import optax
from _job import BATCH, EPOCHS, MODELS, RATE, SIZES, load, report

from jaxmnist import (
    MLP,
    Dataset,
    evaluate,
    init_state,
    make_metrics,
    make_objective,
    make_train_step,
    train,
)
from jaxmnist.machine import cpu_cores
from jaxmnist.sweep import compile_population, run_population

jax.config.update("jax_num_cpu_devices", cpu_cores() if MODELS > 1 else 1)

images, labels, test_images, test_labels = load()
dataset = Dataset(images.reshape(-1, 28, 28), labels)
model, tx = MLP(hidden=SIZES[1:-1]), optax.sgd(RATE)


def run(seed: jax.Array, dataset: Dataset) -> tuple[object, jax.Array]:
    """The parameters after all epochs, and the mean loss of the last."""
    key = jax.random.key(seed)
    step = make_train_step(make_objective(model.apply), tx)
    state = init_state(key, model, tx)
    state, metrics = train(key, dataset, state, step, epochs=EPOCHS, batch_size=BATCH)
    return state.params, metrics["loss"][-1].mean()


seeds = np.arange(MODELS, dtype=np.uint32)
if MODELS > 1:
    population = compile_population(run, seeds, dataset)
    program = partial(run_population, population, seeds)
else:
    data = jax.device_put(dataset)
    compiled = jax.jit(run).lower(seeds[0], data).compile()
    program = partial(compiled, seeds[0], data)

start = time.perf_counter()
params, loss = jax.device_get(program())
seconds = time.perf_counter() - start

if MODELS > 1:
    params = jax.tree.map(lambda leaf: leaf[0], params)
test = Dataset(test_images.reshape(-1, 28, 28), test_labels)
accuracy = evaluate(make_metrics(model.apply), params, test)["accuracy"]
report(seconds, np.mean(loss), float(accuracy))
