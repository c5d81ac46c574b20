"""The programs of a run, compiled for a device or for a mesh, of one process or of many."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmnist import parallel
from jaxmnist.data import Dataset
from jaxmnist.datasets.cache import cache_dir
from jaxmnist.errors import JaxmnistError, UsageError
from jaxmnist.evaluation import evaluate
from jaxmnist.runs.directory import differences
from jaxmnist.runs.machine import check_memory
from jaxmnist.training import TrainState, make_train_epoch
from jaxmnist.types import TrainStep

_MOST = 200  # compiled programs in the cache; a run has four


def find_device(kind: Literal["auto", "cpu", "gpu", "tpu"] = "auto") -> jax.Device:
    """The first device of this kind; "auto" is the best that JAX finds.

    Every script finds its device here. Raises a JaxmnistError where there is none.
    """
    if kind == "cpu":  # does not wake an accelerator that is not wanted
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_platform_name", "cpu")
    try:
        return jax.local_devices(backend=None if kind == "auto" else kind)[0]
    except (RuntimeError, AssertionError) as error:
        why = str(error) or f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}"
        hint = "the extras cuda12, cuda13 and tpu install support for others than cpu"
        raise JaxmnistError(f"JAX finds no device for --device {kind}: {why} ({hint})") from error


def find_mesh(device: jax.Device, count: int | Literal["all"]) -> Mesh | None:
    """A mesh of `count` devices of this device's kind, or of "all"; None for a single one."""
    mesh = parallel.make_mesh(None if count == "all" else count, device.platform)
    return mesh if mesh.size > 1 else None


def compile_programs(
    train_step: TrainStep[TrainState],
    metrics_fn: Callable[..., Any],
    shapes: TrainState,
    train_set: Dataset,
    test_sets: Mapping[str, Dataset],
    *,
    batch_size: int,
    where: jax.Device | Mesh,
) -> tuple[Callable[[Any], Any], Callable[..., Any], Callable[[Any], Any]]:
    """Compile an epoch and the tests, each in a thread: XLA compiles on one core.

    Args:
        train_step, metrics_fn: of `setup.make_training`.
        shapes: the state, or its shapes and dtypes.
        train_set: what the orders index.
        test_sets: what is tested on, by name.
        batch_size: examples in a step, over all devices.
        where: the device, or the devices that share each batch.

    Returns:
        `place(state)`, the state where the programs need it; `train_epoch(state, order) -> (state,
        losses)`, which takes the memory of the state that it is given; and `test(params)`, the
        loss and accuracy on each test set.
    """
    if isinstance(where, Mesh):
        place: Any = partial(parallel.replicate, mesh=where)
        epoch: Any = parallel.make_sharded_epoch(train_step, where)
        inputs: Any = lambda order: (parallel.shard_epoch(train_set, order, batch_size, where),)  # noqa: E731
    else:
        place = partial(jax.device_put, device=where)
        epoch, on_device = make_train_epoch(train_step, batch_size), place(train_set)
        inputs = lambda order: (on_device, order)  # noqa: E731

    def run_tests(params: Any, test_sets: Any) -> Any:
        return {name: evaluate(metrics_fn, params, data) for name, data in test_sets.items()}

    tests = place(dict(test_sets))
    placed = tests["test"].labels.sharding
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes)
    order = np.arange(len(train_set.labels), dtype=np.int32)
    lowered = [
        jax.jit(epoch, donate_argnums=0).lower(shapes, *inputs(order)),
        jax.jit(run_tests).lower(shapes.params, tests),
    ]
    with ThreadPoolExecutor() as pool:
        train, test = pool.map(lambda program: program.compile(), lowered)
    for program in (train, test):
        size = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
        check_memory(size, next(iter(placed.device_set)), "a step of this size")

    def train_epoch(state: TrainState, order: Any) -> tuple[TrainState, jax.Array]:
        state, metrics = train(state, *inputs(order))
        return state, metrics["loss"]

    return place, train_epoch, lambda params: jax.device_get(test(params, tests))


@contextlib.contextmanager
def compile_cache() -> Iterator[None]:
    """Within it JAX keeps compiled programs in the user's cache directory.

    JAX runs what it reads there. So an entry is used only while the checksum that we write beside
    it is right, and each kind of processor has its own directory.
    """
    cpu = platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        cpu = next(line.rstrip("\n") for line in lines if line.startswith(("flags", "Features")))
    place = cache_dir() / f"programs-{hashlib.sha256(cpu.encode()).hexdigest()[:16]}"
    entries = list(place.glob("*-cache"))
    for entry in entries:
        with contextlib.suppress(OSError):  # another process may be writing it; leave it then
            known = Path(f"{entry}.sha256")
            whole = known.exists() and known.read_bytes() == _digest(entry)
            if not whole or len(entries) > _MOST:
                entry.unlink()
                known.unlink(missing_ok=True)
    # An entry that another process is writing or removing is compiled here too.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        for entry in place.glob("*-cache"):
            known = Path(f"{entry}.sha256")
            with contextlib.suppress(OSError):
                if not known.exists():
                    known.write_bytes(_digest(entry))


def _digest(entry: Path) -> bytes:
    return hashlib.sha256(entry.name.encode() + entry.read_bytes()).hexdigest().encode()


def join_processes(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: int
) -> None:
    """Join the processes of a job; all but the first print nothing from now on.

    The arguments are those of `jax.distributed.initialize`, which finds them by itself under Slurm,
    Open MPI and on TPU pods; `timeout` in seconds. Raises a JaxmnistError where it fails.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow a SIGTERM
    limits: Any = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": timeout}
    try:
        jax.distributed.initialize(coordinator, processes, process_id, **limits)
    except (ValueError, RuntimeError) as error:
        hint = "--coordinator HOST:PORT --processes N --process-id I say where the others are"
        raise JaxmnistError(f"--distributed: {str(error).splitlines()[0]} ({hint})") from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def agree(identity: Mapping[str, Any]) -> None:
    """Raise a UsageError where the processes of a job have different identities."""
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(identity).encode().ljust(2**14), np.uint8)
    for other in process_allgather(text):
        if line := differences(json.loads(bytes(other)), identity):
            raise UsageError(f"--distributed: another process has other options: {line}")


def broadcast(state: TrainState) -> TrainState:
    """The first process's state, in every process."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    key: Any = state.key  # typed ones cannot be sent
    sent = broadcast_one_to_all(state._replace(key=jax.random.key_data(key)))
    return sent._replace(key=jax.random.wrap_key_data(sent.key))
