"""Evaluates and trains on a mesh with explicit axes, and compares with arrays that lie nowhere.

Prints the cases that are equal; the first that is not ends the program.
"""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmnist import (
    Dataset,
    classifier_metrics,
    evaluate,
    make_train_epoch,
    make_train_step,
    parallel,
)
from tests.helpers import assert_close, counting
from tests.mesh_worker import MODEL, OBJECTIVES, TX, dataset, start

MESH = jax.make_mesh((4,), ("data",), (AxisType.Explicit,))
ROWS = NamedSharding(MESH, PartitionSpec("data"))
ORDER = np.random.default_rng(1).permutation(900)[:300]


def cases(name: str) -> Any:
    """Where the dataset and where the state lies."""
    state, data = start(name), dataset()
    sharded = parallel.put(data, Dataset(ROWS, ROWS))
    replicated = parallel.replicate(state, MESH)
    yield "sharded rows", sharded, state
    yield "sharded rows, replicated state", sharded, replicated
    fsdp = parallel.put(state, parallel.fsdp_shardings(state, MESH))
    yield "sharded rows and state", sharded, fsdp


def compare(name: str, context: Any) -> None:
    """Every case against a single device's numbers."""
    objective = counting(OBJECTIVES[name])
    step = make_train_step(objective, TX)
    epoch = jax.jit(make_train_epoch(step, 64))
    score = jax.jit(
        lambda params, data: evaluate(classifier_metrics(MODEL.apply), params, data, batch_size=64)
    )
    data, state = dataset(), start(name)
    expected, numbers = epoch(state, data, ORDER), score(state.params, data)
    for case, data, state in cases(name):
        with context():
            assert_close(score(state.params, data), numbers)
            objective.traces = 0
            new, metrics = epoch(state, data, ORDER)
            epoch(new, data, ORDER)
            assert_close(metrics, expected[1], 1e-4)
            assert_close(jax.device_get(new._replace(key=None)), expected[0]._replace(key=None))
        for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
            if isinstance(before.sharding, NamedSharding):
                assert after.sharding.is_equivalent_to(before.sharding, before.ndim), case
            # The mesh of a state that lies on none is known after the first call only.
            assert objective.traces <= (2 if case == "sharded rows" else 1), case
        print(f"{name}, {context.__name__}: {case}")
    batches = parallel.shard_epoch(dataset(), ORDER, 64, MESH)
    with context():
        new, metrics = jax.jit(parallel.make_sharded_epoch(step, MESH))(state, batches)
    assert_close(metrics, expected[1], 1e-4)
    assert_close(jax.device_get(new._replace(key=None)), expected[0]._replace(key=None))
    print(f"{name}, {context.__name__}: sharded batches")


if __name__ == "__main__":

    def set_mesh() -> Any:
        """The mesh as the context's."""
        return jax.set_mesh(MESH)

    compare("notebook", contextlib.nullcontext)
    compare("stateful", set_mesh)
