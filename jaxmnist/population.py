"""Populations: one pure function of a member, mapped over many members on all devices.

Members are independent: each device computes its own, nothing is sent between devices, and each
member gets the result that the same function gives it alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxmnist.checks import check_count
from jaxmnist.data import num_examples
from jaxmnist.errors import JaxmnistError

MEMORY_SHARE = 0.75  # XLA underestimates its memory use; leave a quarter free
ACCELERATOR_WIDTH = 256  # 256 of the notebook's models fill any accelerator

Run = Callable[[Any, Any], Any]  # (member, data) -> arrays
Chunk = tuple[Int[np.ndarray, " chunk"], Any]  # the members' row numbers, their results


class Population(NamedTuple):
    """The compiled program of a population; `run_chunks` calls it."""

    program: jax.stages.Compiled
    data: Any  # lies on every device
    mesh: Mesh
    chunk: int  # members that a call of the program computes, on all devices
    memory: int  # bytes that a call takes on each device, the data included, as XLA counts them


def compile_population(
    run: Run,
    members: Any,
    data: Any,
    *,
    devices: Sequence[jax.Device] | None = None,
    width: int | None = None,
    free: int | None = None,
) -> Population:
    """Compile one program for all members, for as many at once as fit into the memory.

    Args:
        run: `run(member, data) -> arrays`, pure: what is done for one member.
        members: a pytree of arrays `[members, ...]` in which the members differ: seeds, learning
            rates, whole training states. Only shapes and dtypes are read.
        data: a pytree of arrays that all members read; it is copied to each device once.
        devices: where to compute; by default all devices of this process. A CPU counts as one
            device unless `jax_num_cpu_devices` says otherwise; one a core is fastest by far.
        width: how many members a device computes at once, at most. By default
            `ACCELERATOR_WIDTH`, but 1 on CPUs, where one member fills a core: of 8 in a vmap each
            takes 15 % longer. It is 1 too where the program draws numbers by XLA's own generator
            (`rbg`), which under vmap gives other numbers than alone.
        free: free bytes on each device, of which `MEMORY_SHARE` may be used. By default JAX is
            asked; it does not know a CPU's memory, so CPUs have no limit then.

    Raises:
        ValueError: there are no members, or the arrays have not the same number of them.
        JaxmnistError: not even one member on each device fits into its memory.

    Example: ten steps of gradient descent at each of four learning rates.

    >>> import jax, numpy as np
    >>> from jaxmnist.population import compile_population, run_population
    >>> def descend(rate, target):
    ...     return jax.lax.fori_loop(0, 10, lambda _, x: x - rate * (x - target), 0.0)
    >>> rates, target = np.float32([0.0, 0.5, 1.0, 2.0]), np.float32(1024)
    >>> population = compile_population(descend, rates, target)
    >>> run_population(population, rates).tolist()
    [0.0, 1023.0, 1024.0, 0.0]
    """
    count = num_examples(members)
    check_count("width", 1 if width is None else width)
    devices = jax.local_devices() if devices is None else devices
    devices = devices[: -(-count // -(-count // len(devices)))]  # all of them equally busy
    if width is None:
        width = 1 if devices[0].platform == "cpu" else ACCELERATOR_WIDTH
    if free is None:
        stats = [device.memory_stats() for device in devices]
        if all(stats):
            free = min(found["bytes_limit"] - found["bytes_in_use"] for found in stats)
    usable = math.inf if free is None else MEMORY_SHARE * free
    mesh = jax.make_mesh((len(devices),), ("members",), (AxisType.Auto,), devices=devices)
    while True:
        calls = -(-count // (width * mesh.size))
        width = -(-count // (calls * mesh.size))  # no more than needed to end in as many calls
        rows = np.arange(width * mesh.size) % count
        # Shapes only: nothing is put on a device before it is known to fit.
        chunk = jax.eval_shape(_take, members, rows)
        lowered = _lower(run, chunk, jax.eval_shape(lambda data: data, data), mesh, width)
        if width > 1 and "rng_bit_generator" in lowered.as_text():
            width = 1
            continue
        program = lowered.compile()
        sizes: Any = program.memory_analysis()
        kinds = ("argument", "output", "temp", "generated_code")
        memory = sum(getattr(sizes, f"{kind}_size_in_bytes") for kind in kinds)
        if memory <= usable:
            break
        if width == 1:
            told = f"one model on each of {mesh.size} devices takes {memory / 1e9:.2f} GB"
            less = "a smaller model or batch size, or fewer cores by JAX_NUM_CPU_DEVICES=N"
            raise JaxmnistError(f"{told}, and {usable / 1e9:.2f} GB can be used: choose {less}")
        width = max(1, min(width - 1, int(width * usable / memory)))
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    return Population(program, data, mesh, width * mesh.size, memory)


def run_chunks(population: Population, members: Any) -> Iterator[Chunk]:
    """The results of the members, chunk by chunk, each as soon as it is computed.

    Args:
        population: the compiled program.
        members: like those that it was compiled for, any number of them.

    Yields:
        The row numbers of a chunk's members, and their results: what `run` gives, as NumPy arrays
        (typed PRNG keys as JAX's) with the axis `[chunk]` in front.
    """
    count, split = num_examples(members), NamedSharding(population.mesh, PartitionSpec("members"))
    for first in range(0, count, population.chunk):
        rows = np.arange(first, first + population.chunk) % count  # the last call is filled up
        chunk = jax.device_put(_take(members, rows), split)
        results = jax.device_get(population.program(chunk, population.data))
        real = min(population.chunk, count - first)
        yield rows[:real], jax.tree.map(lambda x, real=real: x[:real], results)


def run_population(population: Population, members: Any) -> Any:
    """The results of all members, with the axis `[members]` in front."""

    def concatenate(*chunks: Any) -> Any:
        typed_keys = isinstance(chunks[0], jax.Array)  # NumPy has no dtype for them
        return jnp.concatenate(chunks) if typed_keys else np.concatenate(chunks)

    return jax.tree.map(concatenate, *(results for _, results in run_chunks(population, members)))


def _take(members: Any, rows: Any) -> Any:
    """The members in these rows."""
    return jax.tree.map(lambda x: x[rows], members)


def _lower(run: Run, chunk: Any, data: Any, mesh: Mesh, width: int) -> jax.stages.Lowered:
    """The program for a chunk of `width` members on each device of the mesh."""

    def run_all(members: Any, data: Any) -> Any:
        if width > 1:
            return jax.vmap(run, (0, None))(members, data)
        # On CPUs a batch of one makes XLA's matmuls 15 % slower, a loop of one does not.
        return jax.lax.map(lambda member: run(member, data), members)

    split, shared = PartitionSpec("members"), PartitionSpec()
    # Nothing is sent between devices, so JAX need not check that it is sent where it must be.
    mapped = jax.shard_map(
        run_all, mesh=mesh, in_specs=(split, shared), out_specs=split, check_vma=False
    )
    placed = NamedSharding(mesh, split), NamedSharding(mesh, shared)
    return jax.jit(mapped, in_shardings=placed).lower(chunk, data)
