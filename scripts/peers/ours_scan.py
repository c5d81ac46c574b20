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
    TrainState,
    classifier_metrics,
    classifier_objective,
    evaluate,
    init_state,
    make_train_step,
    train,
)
from jaxmnist.population import compile_population, run_population
from jaxmnist.runs.machine import cpu_cores

jax.config.update("jax_num_cpu_devices", cpu_cores() if MODELS > 1 else 1)

images, labels, test_images, test_labels = load()
dataset = Dataset(images.reshape(-1, 28, 28), labels)
model, tx = MLP(hidden=SIZES[1:-1]), optax.sgd(RATE)


def run(member: tuple[jax.Array, TrainState], dataset: Dataset) -> tuple[object, jax.Array]:
    """The parameters after all epochs, and the mean loss of the last."""
    seed, state = member
    step = make_train_step(classifier_objective(model.apply), tx)
    key = jax.random.key(seed)
    state, metrics = train(step, state, dataset, key, epochs=EPOCHS, batch_size=BATCH)
    return state.params, metrics["loss"][-1].mean()


@jax.jit
def init(seed: jax.Array) -> TrainState:
    """The state before the first step, without a key, which the host cannot hold."""
    return init_state(model, tx, jax.random.key(seed))._replace(key=None)


seeds = np.arange(MODELS, dtype=np.uint32)
if MODELS > 1:
    members = jax.device_get((seeds, jax.vmap(init)(seeds)))
    program = partial(run_population, compile_population(run, members, dataset), members)
else:
    member, data = jax.device_put(((seeds[0], init(seeds[0])), dataset))
    program = partial(jax.jit(run).lower(member, data).compile(), member, data)

jax.block_until_ready(program())  # the first call takes longer: the peers, too, have run a step
start = time.perf_counter()
params, loss = jax.block_until_ready(program())
seconds = time.perf_counter() - start

if MODELS > 1:
    params = jax.tree.map(lambda leaf: leaf[0], params)
test = Dataset(test_images.reshape(-1, 28, 28), test_labels)
accuracy = evaluate(classifier_metrics(model.apply), params, test)["accuracy"]
report(seconds, np.mean(loss), float(accuracy))
