"""Trains five epochs on a mesh and prints the losses: python mesh_worker.py [PORT PROCESSES ID]."""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist import (
    MLP,
    Dataset,
    TrainState,
    classifier_objective,
    cross_entropy,
    epoch_order,
    init_state,
    make_train_step,
    parallel,
    preprocess,
)
from jaxmnist.training import norms

EPOCHS = 3
MODEL, TX = MLP((32,)), optax.sgd(0.05, momentum=0.9)
SEED = 0


def dataset() -> Dataset:
    """900 random images, whose number neither 64 nor 8 divides, and labels that can be learnt."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 900, np.int32)
    images = rng.integers(0, 256, (900, 28, 28), np.uint8)
    images[np.arange(900), labels] = 255  # a bright row
    return Dataset(images, labels)


def stateful(params: Any, batch: Dataset, *, key: Any, model_state: Any, where: Any) -> Any:
    """Dropout on the pixels, and their running mean, which is taken off them."""
    images = preprocess(batch.images)
    rows = None if where is None else where[:, None]
    mean = 0.9 * model_state + 0.1 * jnp.mean(images, axis=0, where=rows)
    kept = jax.random.bernoulli(key, 0.8, images.shape)
    logits = MODEL.apply(params, jnp.where(kept, images - mean[None], 0))
    return cross_entropy(logits, batch.labels), {"mean": mean.mean()}, mean


OBJECTIVES = {"notebook": classifier_objective(MODEL.apply), "stateful": stateful}
RUNS = {  # objective, batch size, whether parameters are sharded
    "notebook": ("notebook", 64, False),
    "stateful": ("stateful", 56, False),
    "fsdp": ("stateful", 64, True),
}


def start(name: str) -> TrainState:
    """What an objective's run starts from."""
    state = init_state(MODEL, TX, jax.random.key(SEED))
    return state if name == "notebook" else state._replace(model_state=jnp.zeros(784))


def losses(name: str, batch_size: int, fsdp: bool) -> dict[str, Any]:
    """Those of each step of each epoch, how often the step was traced, and the last state.

    With `fsdp` also the sizes of the parts that the first device holds.
    """
    traces = 0

    def log(*args: Any) -> dict[str, jax.Array]:
        nonlocal traces
        traces += 1
        return norms(*args)

    data, mesh = dataset(), parallel.make_mesh()
    state, step = start(name), make_train_step(OBJECTIVES[name], TX, log=log)
    shardings = parallel.fsdp_shardings(state, mesh) if fsdp else None
    state = parallel.put(state, shardings) if fsdp else parallel.replicate(state, mesh)
    train_epoch = jax.jit(parallel.make_sharded_epoch(step, mesh, shardings))
    result = []
    for epoch in range(EPOCHS):
        order = epoch_order(jax.random.key(SEED), epoch, len(data.labels))
        state, metrics = train_epoch(state, parallel.shard_epoch(data, order, batch_size, mesh))
        result.append(np.asarray(metrics["loss"]).tolist())
    assert state.step == EPOCHS * -(-900 // batch_size)
    assert all(values.is_fully_replicated for values in metrics.values())
    leaves = jax.tree.leaves((state.params, state.opt_state, state.model_state))
    return {
        "losses": result,
        "norms": np.asarray(metrics["param_norm"]).tolist(),
        "traces": traces,
        "sizes": [leaf.size for leaf in leaves],
        "held": [leaf.addressable_shards[0].data.size for leaf in leaves],
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        port, processes, number = sys.argv[1:]
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(number))
    told = {run: losses(*given) for run, given in RUNS.items()}
    print(json.dumps({"devices": len(jax.devices()), "runs": told}))
