"""Running a sweep: its results are kept as they come, a signal ends it, and parts become one."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmnist.data import Dataset
from jaxmnist.errors import DataError, Stopped, UsageError
from jaxmnist.population import Population
from jaxmnist.runs.processes import join
from jaxmnist.runs.programs import count_steps
from jaxmnist.runs.signals import Signals
from jaxmnist.runs.sweep_file import (
    Models,
    Results,
    ResultsBuffer,
    ResultsFile,
    check_same,
    merge_results,
    part_path,
    read_results,
    write_results,
)
from jaxmnist.runs.sweep_models import train_models
from jaxmnist.runs.sweep_plan import Plan, program_key
from jaxmnist.search import Setting

Part = tuple[int, int]  # which, from 1, of how many


@contextlib.contextmanager
def deal(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: int
) -> Iterator[Callable[[Mapping[str, Any]], Part]]:
    """Within it this process is one of a job, and learns its part of the models.

    It is given a function that takes the sweep's header, on which all processes must agree, and
    returns this process's part. After it none hears of the others any more, so one that dies takes
    no other with it.

    Args:
        coordinator, processes, process_id, timeout: as in `processes.join`.

    Raises:
        UsageError, JaxmnistError: the processes are started with different options, or do not come.
    """
    stdout = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # Gloo prints there that it is connected
        with join(coordinator, processes, process_id, timeout) as group:

            def part_of(header: Mapping[str, Any]) -> Part:
                names = {"settings": "grid", "data": "dataset"}  # as the options are called
                told = {names.get(name, name): value for name, value in header.items()}
                del told["versions"]
                group.agree(told.pop("options") | told)
                return jax.process_index() + 1, jax.process_count()

            yield part_of
            group.leave()
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def open_results(
    plan: Plan, header: Setting, out: Path | None, part: Part = (1, 1), *, resume: bool = False
) -> ResultsBuffer:
    """Where the rows of a sweep, or of a part of it, go: a file, or without `out` this process.

    Args:
        plan: the sweep.
        header: what identifies it.
        out: the file; a part has its own file next to it.
        part: which part it is.
        resume: continue the file if it exists.

    Raises:
        UsageError, DataError, JaxmnistError, OSError: as in `ResultsFile`.
    """
    if out is None:
        return ResultsBuffer()
    if part == (1, 1):
        return ResultsFile(out, header, plan.columns, resume=resume)
    if out.exists():
        check_same(out, read_results(out), header, plan.columns)
    header = {**header, "part": list(part)}
    return ResultsFile(part_path(out, *part), header, plan.columns, resume=resume)


def models_of(plan: Plan, part: Part) -> range:
    """The models of a part; every part has some of each program."""
    return range(part[0] - 1, plan.models, part[1])


def check_steps(plan: Plan, images: int) -> None:
    """Raise a UsageError where a setting's batches or steps do not fit the training images."""
    for setting in plan.settings:
        given = plan.options | setting
        count_steps(images, given["batch_size"], given["epochs"])


def describe(plan: Plan, part: Part, left: int) -> str:
    """A line that says what is to be trained."""
    programs = len({program_key(setting) for setting in plan.settings}) * len(plan.rungs)
    words = [f"{plan.models} = {len(plan.settings)} settings x {plan.seeds} seeds"]
    words += [f"programs: {programs}"]
    if len(plan.rungs) > 1:
        words += [
            "settings for epochs: " + ", ".join(f"{r.settings} for {r.epochs}" for r in plan.rungs)
        ]
    if part != (1, 1):
        words += [f"this part: {len(models_of(plan, part))}"]
    return f"Models: {'; '.join([*words, f'to train: {left}'])}"


def count_left(plan: Plan, models: Models, numbers: Collection[int]) -> int:
    """How many trainings are left, each rung counted by itself."""
    left = 0
    for rung in plan.rungs:
        done = sum(len(rows) >= plan.epochs(m, rung) for m, rows in models.items())
        left += min(rung.settings * plan.seeds, len(numbers)) - done
    return left


def train_missing(
    plan: Plan,
    results: ResultsBuffer,
    numbers: Collection[int],
    data: Mapping[str, Dataset],
    devices: Sequence[jax.Device],
) -> Iterator[tuple[Population, int]]:
    """Train the models that are missing, and add each chunk's rows to the results.

    Args:
        plan, numbers, data, devices: as in `train_models`.
        results: of `open_results`; closed at the end.

    Yields:
        The program and how many models it has trained, after each chunk.

    Raises:
        Stopped: a signal came; what is trained so far is in the results.
        JaxmnistError, OSError: a model does not fit into memory, or rows cannot be written.
    """
    left = total = count_left(plan, results.models, numbers)
    with contextlib.closing(results), Signals() as signals:
        for population, rows in train_models(plan, results.models, numbers, data, devices):
            results.append(rows)
            count = len({row["model"] for row in rows})
            left -= count
            yield population, count
            if signals.number and left:
                kept = (
                    "--resume continues" if isinstance(results, ResultsFile) else "nothing is kept"
                )
                raise Stopped(
                    signals.number, f"stopped after {total - left} of {total} models; {kept}"
                )


def merge(parts: Sequence[Path], out: Path) -> Results:
    """Join the files of a sweep's parts into `out`, which may be of the same sweep already.

    Raises:
        UsageError, DataError, OSError: as in `merge_results`, or `out` is something else.
    """
    merged = merge_results(parts)
    if out.exists():
        check_same(out, read_results(out), merged.header, merged.columns)
    write_results(out, merged)
    return merged


def merge_parts(out: Path, part: Part) -> Models | None:
    """Join the parts into `out` if all of them are finished, else do nothing.

    No process has to wait for others: the one that ends last does it, or several the same.
    """
    try:
        merged = merge_results([part_path(out, i, part[1]) for i in range(1, part[1] + 1)])
    except (OSError, UsageError, DataError):
        return None  # another part has not begun, not ended, or is being written
    write_results(out, merged)
    return merged.models
