"""Trains three epochs on a mesh and prints the losses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist import MLP, classifier_objective, epoch_order, init_state, make_train_step, parallel
from jaxmnist.training import norms
from tests.helpers import bright_rows, counting, stateful

EPOCHS = 3
MODEL, TX, SEED = MLP((32,)), optax.sgd(0.05, momentum=0.9), 0
OBJECTIVES = {"notebook": classifier_objective(MODEL.apply), "stateful": stateful(MODEL.apply)}
RUNS = {  # objective, batch size, whether parameters are sharded
    "notebook": ("notebook", 64, False),
    "stateful": ("stateful", 56, False),
    "fsdp": ("stateful", 64, True),
}


def dataset():
    """900 images: neither 64 nor 8 divides their number."""
    return bright_rows(900)


def start(name):
    """What an objective's run starts from."""
    state = init_state(MODEL, TX, jax.random.key(SEED))
    return state if name == "notebook" else state._replace(model_state=jnp.zeros(784))


def losses(name, batch_size, fsdp):
    """Those of each step of each epoch, how often the step was traced, and the last state.

    With `fsdp` also the sizes of the parts that the first device holds.
    """
    data, mesh, objective = dataset(), parallel.make_mesh(), counting(OBJECTIVES[name])
    state, step = start(name), make_train_step(objective, TX, log=norms)
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
        "traces": objective.traces,
        "sizes": [leaf.size for leaf in leaves],
        "held": [leaf.addressable_shards[0].data.size for leaf in leaves],
    }


if __name__ == "__main__":
    told = {run: losses(*given) for run, given in RUNS.items()}
    print(json.dumps({"devices": len(jax.devices()), "runs": told}))
