"""Evaluates and trains on a mesh with explicit axes, and compares with arrays that lie nowhere."""

import contextlib

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmnist import classifier_metrics, evaluate, make_train_epoch, make_train_step, parallel
from tests.helpers import assert_close, counting
from tests.mesh_worker import MODEL, OBJECTIVES, TX, dataset, start

MESH = jax.make_mesh((4,), ("data",), (AxisType.Explicit,))
ROWS = NamedSharding(MESH, PartitionSpec("data"))
ORDER = np.random.default_rng(1).permutation(900)[:300]
DATA, STATE = dataset(), start("stateful")
STATES = {
    "nowhere": STATE,
    "replicated": parallel.replicate(STATE, MESH),
    "sharded": parallel.put(STATE, parallel.fsdp_shardings(STATE, MESH)),
}


def main():
    """With the mesh as the context's, and without; the first case that differs ends it."""
    objective = counting(OBJECTIVES["stateful"])
    step, metrics_fn = make_train_step(objective, TX), classifier_metrics(MODEL.apply)
    epoch = jax.jit(make_train_epoch(step, 64))
    on_batches = jax.jit(parallel.make_sharded_epoch(step, MESH))
    score = jax.jit(lambda params, data: evaluate(metrics_fn, params, data, batch_size=64))
    expected, numbers = epoch(STATE, DATA, ORDER), score(STATE.params, DATA)
    data = parallel.put(DATA, jax.tree.map(lambda _: ROWS, DATA))
    batches = parallel.shard_epoch(DATA, ORDER, 64, MESH)
    for context in (contextlib.nullcontext, lambda: jax.set_mesh(MESH)):
        for case, state in STATES.items():
            with context():
                assert_close(score(state.params, data), numbers)
                objective.traces = 0
                results = epoch(state, data, ORDER)
                epoch(results[0], data, ORDER)
            assert_close(results[0], expected[0])
            assert_close(results[1], expected[1], 1e-4)
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(results[0]), strict=True):
                if isinstance(a.sharding, NamedSharding):
                    assert b.sharding.is_equivalent_to(a.sharding, a.ndim), case
            # The mesh of a state that lies on none is known after the first call only.
            assert objective.traces <= (2 if case == "nowhere" else 1), case
        with context():
            results = on_batches(STATES["sharded"], batches)
        assert_close(results[0], expected[0])
        assert_close(results[1], expected[1], 1e-4)


if __name__ == "__main__":
    main()
