"""Trains five epochs on a mesh and prints the losses: python mesh_worker.py [PORT PROCESSES ID]."""

import json
import sys

import jax
import numpy as np
import optax

from jaxmnist import MLP, Dataset, cross_entropy, epoch_order, init_state, make_train_step, parallel

EPOCHS, BATCHES = 5, (64, 50)


def dataset() -> Dataset:
    """900 random images, whose number neither 64 nor 8 divides, and labels that can be learnt."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 900, np.int32)
    images = rng.integers(0, 256, (900, 28, 28), np.uint8)
    images[np.arange(900), labels] = 255  # a bright row
    return Dataset(images, labels)


def losses(batch_size: int) -> tuple[list[list[float]], int]:
    """Of each step of each epoch; and how often the step was traced."""
    traces = 0

    def loss_fn(logits: jax.Array, labels: jax.Array, **kwargs: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return cross_entropy(logits, labels, **kwargs)

    data, key, mesh = dataset(), jax.random.key(0), parallel.make_mesh()
    model, tx = MLP((32,)), optax.sgd(0.05, momentum=0.9)
    state = parallel.replicate(init_state(key, model, tx), mesh)
    step = make_train_step(model.apply, tx, loss_fn)
    train_epoch = jax.jit(parallel.make_shared_epoch(step, mesh))
    result = []
    for epoch in range(EPOCHS):
        order = epoch_order(key, epoch, len(data.labels))
        state, metrics = train_epoch(state, parallel.share_epoch(data, order, batch_size, mesh))
        result.append(np.asarray(metrics["loss"]).tolist())
    assert state.step == EPOCHS * -(-900 // batch_size)
    return result, traces


if __name__ == "__main__":
    if len(sys.argv) > 1:
        port, processes, number = sys.argv[1:]
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(number))
    result = {str(batch_size): losses(batch_size) for batch_size in BATCHES}
    refused = ""
    try:
        parallel.share_epoch(dataset(), np.arange(8), 4, parallel.make_mesh())
    except ValueError as error:  # where the mesh is larger than 4
        refused = str(error)
    print(json.dumps({"devices": len(jax.devices()), "losses": result, "refused": refused}))
