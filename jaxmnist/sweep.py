"""Many trainings at once: one pure run, mapped over seeds and settings, shared out over devices.

The members of a sweep know nothing of one another, so each device trains its own, and nothing is
sent between them. Each is the run that the same function gives alone.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, PRNGKeyArray, UInt32

from jaxmnist.errors import JaxmnistError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.75  # of the free memory may be used; the rest is for what XLA's account leaves out
AT_ONCE = 256  # members on an accelerator: 10 GFLOP a step of the notebook's model fill any

Run = Callable[[PRNGKeyArray, Any, Any], Any]  # (key, setting, data) -> arrays


class Members(NamedTuple):
    """What the members of a sweep differ in, along the first axis of each array."""

    seeds: UInt32[np.ndarray, " members"]
    settings: Any  # a pytree of arrays [members, ...], for instance learning rates


class Sweep(NamedTuple):
    """A sweep that is compiled and not yet run."""

    members: Members
    data: Any  # lies on every device
    mesh: Mesh
    program: jax.stages.Compiled
    at_once: int  # members a call of the program trains, on all devices together
    memory: int  # bytes that a call takes on each device, the data included, as XLA counts them


def grid(settings: Sequence[float], seeds: Sequence[int]) -> Members:
    """Every setting with every seed; the seeds of the first setting come first."""
    return Members(
        np.tile(np.asarray(seeds, np.uint32), len(settings)),
        np.repeat(np.asarray(settings, np.float32), len(seeds)),
    )


def compile_sweep(
    run: Run,
    members: Members,
    data: Any,
    *,
    devices: Sequence[jax.Device] | None = None,
    width: int | None = None,
    free: int | None = None,
) -> Sweep:
    """Compile the one program that trains the members, as many at once as memory lets.

    Args:
        run: `run(key, setting, data) -> arrays`, pure, what is done for one member; for instance
            `lambda key, rate, data: train(key, data, MLP(), optax.sgd(rate))[1]`.
        members: the seeds, `jax.random.key(seed)` being the run's key, and the settings.
        data: what all runs read, a pytree of arrays; each device is given it once.
        devices: where to train, by default all of this process. A CPU is a single one unless
            `jax_num_cpu_devices` says otherwise; one a core is the quickest by far.
        width: how many members a device trains at once, at most. By default `AT_ONCE`, but 1 on
            CPUs, where a core has enough to do with one: of 8 in a vmap each takes 15 % longer.
        free: bytes that may be used on each device, by default `SHARE` of what is free there.

    Raises:
        ValueError: there are no members, or not as many settings as seeds.
        JaxmnistError: not even one member on each device fits into its memory.
    """
    count = len(members.seeds)
    if {len(leaf) for leaf in jax.tree.leaves(members)} != {count} or not count:
        raise ValueError("a sweep needs at least one member, and a seed and a setting for each")
    devices = jax.local_devices() if devices is None else devices
    devices = devices[: -(-count // -(-count // len(devices)))]  # all of them equally busy
    platform = devices[0].platform
    if width is None:
        width = 1 if platform == "cpu" else AT_ONCE
    if free is None:
        found = free_memory(devices)
        free = None if found is None else int(SHARE * found)
    mesh = jax.make_mesh((len(devices),), ("members",), (AxisType.Auto,), devices=devices)
    while True:
        calls = -(-count // (width * mesh.size))
        width = -(-count // (calls * mesh.size))  # no more than needed to end in as many calls
        program = _compile(run, members, data, mesh, width)
        memory = _memory(program)
        if free is None or memory <= free:
            break
        if width == 1:
            several = platform == "cpu" and mesh.size > 1
            raise JaxmnistError(
                f"one model on each of {mesh.size} devices ({platform}) takes {memory / 1e9:.2f} GB"
                f" there, and {free / 1e9:.2f} GB may be used: choose a smaller model or batch size"
                + (", or fewer cores by JAX_NUM_CPU_DEVICES=N" if several else "")
            )
        width = max(1, min(width - 1, int(width * free / memory)))
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    return Sweep(members, data, mesh, program, width * mesh.size, memory)


def run_sweep(sweep: Sweep, on_call: Callable[[int], object] | None = None) -> Any:
    """Train all members: what the run gives, as NumPy arrays with the axis [members] in front.

    `on_call(n)` is told whenever n more members are trained.
    """
    count, results = len(sweep.members.seeds), []
    for first in range(0, count, sweep.at_once):
        rows = np.arange(first, first + sweep.at_once) % count  # the last call is filled up
        members = jax.tree.map(lambda values, rows=rows: values[rows], sweep.members)
        results.append(jax.device_get(sweep.program(members, sweep.data)))
        if on_call is not None:
            on_call(min(sweep.at_once, count - first))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


def over_seeds(
    values: Float[np.ndarray, "settings seeds epochs"], diverged: Bool[np.ndarray, "settings seeds"]
) -> tuple[Float[np.ndarray, "settings epochs"], Float[np.ndarray, "settings epochs"]]:
    """Mean and sample standard deviation over the seeds that have not diverged.

    They are not a number where no seed is left, and the deviation also where only one is.
    """
    left_out = np.broadcast_to(diverged[:, :, None], values.shape)
    kept = np.ma.masked_array(values, left_out)
    return kept.mean(axis=1).filled(np.nan), kept.std(axis=1, ddof=1).filled(np.nan)


def sweep_figure(
    scores: Mapping[str, Float[np.ndarray, "settings seeds epochs"]],
    diverged: Bool[np.ndarray, "settings seeds"],
    labels: Sequence[str],
) -> "Figure":
    """Loss and accuracy against epochs: a line for the mean of each setting's seeds, in a band.

    The band reaches a standard deviation up and down. Seeds that have diverged are left out.

    Args:
        scores: "train_loss", the mean of each epoch, and "test_loss", in nats; "test_accuracy".
        diverged: which to leave out; the legend tells how many.
        labels: what the legend calls each setting.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = {
        "train_loss": "training loss (nats), mean of the epoch",
        "test_loss": "test loss (nats)",
        "test_accuracy": "test accuracy",
    }
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(labels)))
    for axes, (name, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        epochs = np.arange(1, scores[name].shape[-1] + 1)
        for row, setting, color, mean, deviation in zip(
            diverged, labels, colors, *over_seeds(scores[name], diverged), strict=True
        ):
            if row.any():
                setting += f" ({row.sum()} of {row.size} diverged)"
            band = np.nan_to_num(deviation)  # a single seed has none
            axes.errorbar(
                epochs, mean, band, fmt="o-", ms=3, elinewidth=1, color=color, label=setting
            )
            axes.fill_between(
                epochs, mean - band, mean + band, color=color, alpha=0.25, linewidth=0
            )
        axes.set(xlabel="epochs", xlim=(0.5, epochs.size + 0.5), ylabel=label)
        if name == "test_accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif not diverged.all():  # matplotlib has no logarithm of nothing
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            low, high = axes.get_ylim()
            axes.yaxis.set_minor_formatter("{x:g}" if high < 30 * low else NullFormatter())
            axes.tick_params(which="minor", labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that each of the devices has left, the least of them; None where nothing tells.

    CPU devices share what Linux calls available, or the container's limit if that is less.
    """
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() for device in devices]
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats) if all(stats) else None
    found = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # where there is no limit it reads "max"
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found) // len(devices) if found else None


def _compile(run: Run, members: Members, data: Any, mesh: Mesh, width: int) -> jax.stages.Compiled:
    """The program for `width` members on each device of the mesh."""

    def run_all(members: Members, data: Any) -> Any:
        def run_one(member: Members) -> Any:
            return run(jax.random.key(member.seeds), member.settings, data)

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

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)  # float32 for the float64 of NumPy
        return jax.ShapeDtypeStruct(count + leaf.shape[len(count) :], dtype, sharding=sharding)

    return jax.tree.map(shape, tree)


def _memory(program: jax.stages.Compiled) -> int:
    """Bytes on each device, while the program runs there."""
    sizes: Any = program.memory_analysis()
    kinds = ("argument", "output", "temp", "generated_code")
    return sum(getattr(sizes, f"{kind}_size_in_bytes") for kind in kinds)
