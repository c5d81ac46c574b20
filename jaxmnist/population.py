"""Populations: one pure function of a member, mapped over many members on all devices.

The members know nothing of one another, so each device computes its own, and nothing is sent
between them. Each member gets the result that the same function gives it alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxmnist.errors import JaxmnistError
from jaxmnist.machine import free_memory

MEMORY_SHARE = 0.75  # of the free memory may be used; the rest is for what XLA's account leaves out
ACCELERATOR_WIDTH = 256  # members at once: 10 GFLOP a step of the notebook's model fill any

Run = Callable[[Any, Any], Any]  # (member, data) -> arrays
Chunk = tuple[Int[np.ndarray, " chunk"], Any]  # the members' row numbers, their results


class Job(NamedTuple):
    """Members of one program, some of which are to be computed."""

    run: Run
    members: Any  # all of them: how many go into a chunk does not depend on what is left
    rows: Int[np.ndarray, " left"]  # the numbers of those that are left


class Population(NamedTuple):
    """The compiled program of a population; `run_chunks` calls it."""

    program: jax.stages.Compiled
    data: Any  # lies on every device
    mesh: Mesh
    chunk: int  # members a call of the program computes, on all devices
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
    """Compile the one program for all members, for as many at once as fit into the memory.

    Args:
        run: `run(member, data) -> arrays`, pure, what is done for one member.
        members: a pytree of arrays `[members, ...]`, what the members differ in: seeds, learning
            rates, whole training states. Only shapes and dtypes are read.
        data: what all members read, a pytree of arrays; each device is given it once.
        devices: where to compute, by default all of this process. A CPU is a single one unless
            `jax_num_cpu_devices` says otherwise; one a core is the quickest by far.
        width: how many members a device computes at once, at most. By default
            `ACCELERATOR_WIDTH`, but 1 on CPUs, where a core has enough to do with one: of 8 in a
            vmap each takes 15 % longer.
        free: bytes that may be used on each device, by default `MEMORY_SHARE` of what is free.

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
    count = count_members(members)
    devices = jax.local_devices() if devices is None else devices
    devices = devices[: -(-count // -(-count // len(devices)))]  # all of them equally busy
    if width is None:
        width = 1 if devices[0].platform == "cpu" else ACCELERATOR_WIDTH
    if free is None:
        found = free_memory(devices)
        free = None if found is None else int(MEMORY_SHARE * found)
    mesh = jax.make_mesh((len(devices),), ("members",), (AxisType.Auto,), devices=devices)
    while True:
        calls = -(-count // (width * mesh.size))
        width = -(-count // (calls * mesh.size))  # no more than needed to end in as many calls
        program = _compile(run, members, data, mesh, width)
        memory = _memory(program)
        if free is None or memory <= free:
            break
        if width == 1:
            raise JaxmnistError(_too_large(mesh, memory, free))
        width = max(1, min(width - 1, int(width * free / memory)))
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    return Population(program, data, mesh, width * mesh.size, memory)


def run_chunks(population: Population, members: Any) -> Iterator[Chunk]:
    """The results of the members, chunk by chunk, each as soon as it is computed.

    Args:
        population: the compiled program.
        members: like those that it was compiled for, any number of them.

    Yields:
        The row numbers of a chunk's members, and their results: what the run gives, as NumPy arrays
        (typed PRNG keys as JAX's) with the axis `[chunk]` in front.

    Raises:
        JaxmnistError: a device has run out of memory.
    """
    count, split = count_members(members), NamedSharding(population.mesh, PartitionSpec("members"))
    for first in range(0, count, population.chunk):
        rows = np.arange(first, first + population.chunk) % count  # the last call is filled up
        chunk = jax.tree.map(lambda values, rows=rows: values[rows], members)
        chunk = jax.device_put(chunk, split)
        real = min(population.chunk, count - first)
        try:
            results = jax.device_get(population.program(chunk, population.data))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise JaxmnistError(
                f"{population.chunk} models at once need {population.memory / 1e9:.2f} GB on each "
                "device, which is no longer free there; end what else uses it, or train fewer"
            ) from None
        yield rows[:real], jax.tree.map(lambda values, real=real: values[:real], results)


def run_jobs(
    jobs: Sequence[Job], data: Any, *, devices: Sequence[jax.Device] | None = None
) -> Iterator[tuple[int, Population, Chunk]]:
    """The results of several programs, chunk by chunk; each is compiled while the one before runs.

    Args:
        jobs: what to compute, one program after the other.
        data, devices: as in `compile_population`.

    Yields:
        The number of the job, its program, and a chunk as of `run_chunks`.

    Raises:
        ValueError, JaxmnistError: as in `compile_population` and `run_chunks`.
    """
    devices = jax.local_devices() if devices is None else devices
    found = free_memory(devices)  # now: later a program will have its memory
    free = None if found is None else int(MEMORY_SHARE * found)

    def compile_job(job: Job) -> Population:
        return compile_population(job.run, job.members, data, devices=devices, free=free)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(compile_job, jobs[0]) if jobs else None
        for number, job in enumerate(jobs):
            assert following is not None
            population = following.result()
            if number + 1 < len(jobs):
                following = pool.submit(compile_job, jobs[number + 1])
            left = jax.tree.map(lambda values, job=job: values[job.rows], job.members)
            for rows, results in run_chunks(population, left):
                yield number, population, (job.rows[rows], results)


def run_population(population: Population, members: Any) -> Any:
    """The results of all members, with the axis `[members]` in front."""
    results = [results for _, results in run_chunks(population, members)]
    return jax.tree.map(lambda *chunks: _concatenate(chunks), *results)


def count_members(members: Any) -> int:
    """The length of the first axis, which all arrays of the pytree must share."""
    lengths = {len(leaf) for leaf in jax.tree.leaves(members)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError("a population needs at least one member, and all its arrays one length")
    return lengths.pop()


def _concatenate(chunks: Sequence[Any]) -> Any:
    typed_keys = isinstance(chunks[0], jax.Array)  # NumPy has no dtype for them
    return jnp.concatenate(chunks) if typed_keys else np.concatenate(chunks)


def _compile(run: Run, members: Any, data: Any, mesh: Mesh, width: int) -> jax.stages.Compiled:
    """The program for `width` members on each device of the mesh."""

    def run_all(members: Any, data: Any) -> Any:
        def run_one(member: Any) -> Any:
            return run(member, data)

        # A batch of one makes XLA's matmuls on CPUs 15 % slower, a loop of one does not.
        return jax.lax.map(run_one, members) if width == 1 else jax.vmap(run_one)(members)

    split, shared = PartitionSpec("members"), PartitionSpec()
    # Nothing is sent between devices, so JAX need not check that it is sent where it must be.
    mapped = jax.shard_map(
        run_all, mesh=mesh, in_specs=(split, shared), out_specs=split, check_vma=False
    )
    members_shapes = _shapes(members, NamedSharding(mesh, split), (width * mesh.size,))
    data_shapes = _shapes(data, NamedSharding(mesh, shared))
    return jax.jit(mapped).lower(members_shapes, data_shapes).compile()


def _shapes(tree: Any, sharding: NamedSharding, count: tuple[int, ...] = ()) -> Any:
    """The tree's shapes, dtypes and sharding; `count` replaces the first axes' sizes."""

    def shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = count + leaf.shape[len(count) :]
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    # As JAX will see them: float32 for the float64 of NumPy.
    return jax.tree.map(shape, jax.eval_shape(lambda tree: tree, tree))


def _memory(program: jax.stages.Compiled) -> int:
    """Bytes on each device, while the program runs there."""
    sizes: Any = program.memory_analysis()
    kinds = ("argument", "output", "temp", "generated_code")
    return sum(getattr(sizes, f"{kind}_size_in_bytes") for kind in kinds)


def _too_large(mesh: Mesh, memory: int, free: int) -> str:
    platform = mesh.devices.flat[0].platform
    fewer = ", or fewer cores by JAX_NUM_CPU_DEVICES=N"
    return (
        f"one model on each of {mesh.size} devices ({platform}) takes {memory / 1e9:.2f} GB there, "
        f"and {free / 1e9:.2f} GB can be used: choose a smaller model or batch size"
        + (fewer if platform == "cpu" and mesh.size > 1 else "")
    )
