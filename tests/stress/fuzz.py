"""Damage files of every kind that the library reads, and see that it refuses or reads them right.

A file is good if it is accepted with what its bytes say, or refused with one of the library's own
errors in one line, in 5 seconds and 1 GiB of memory, without a warning. Any other is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

from jaxmnist.errors import JaxmnistError
from tests.stress.fuzz_images import Images
from tests.stress.fuzz_targets import Case, Checkpoints, Idx, Target, Weights

SECONDS = 5.0
MEMORY = 2**30
KEPT = 10  # files of a kind
TARGETS: dict[str, type[Any]] = {
    "idx": Idx,
    "weights": Weights,
    "checkpoints": Checkpoints,
    "images": Images,
}


@dataclasses.dataclass
class Tally:
    """What became of the files of one kind."""

    accepted: int = 0
    refused: int = 0
    failures: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0


class TooSlowError(BaseException):
    """Not an Exception, so that no reader can take it for an error in a file."""


def main(
    idx: int = 100_000,
    weights: int = 10_000,
    checkpoints: int = 10_000,
    images: int = 10_000,
    seed: int = 0,
    out: Path = Path("fuzz-failures"),
) -> None:
    """Damage files of every kind that the library reads; see that it refuses or reads them right.

    Prints a Markdown table. Each kind has a process of its own.

    Args:
        idx: number of IDX files, raw and gzipped; 0 leaves a kind out.
        weights: number of files of weights, as safetensors.
        checkpoints: number of checkpoints.
        images: number of pictures, most of them PNG.
        seed: makes the files: file n of a kind depends on the seed and n alone.
        out: directory for the files that are not read as they should be; made where there are any.
    """
    counts = {"idx": idx, "weights": weights, "checkpoints": checkpoints, "images": images}
    print("| kind | files | accepted | refused | failed | slowest, ms | peak memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    failed = False
    for kind, count in counts.items():
        if not count:
            continue
        tally = fuzz_in_child(kind, count, seed, out)
        if tally.peak > MEMORY:
            tally.failures.append((-1, f"took {tally.peak / 2**20:,.0f} MiB in all"))
        print(
            f"| {kind} | {count:,} | {tally.accepted:,} | {tally.refused:,} "
            f"| {len(tally.failures):,} | {tally.slowest * 1e3:.1f} | {tally.peak / 2**20:.0f} |",
            flush=True,
        )
        for n, why in tally.failures[:KEPT]:
            print(f"{kind}, file {n} of seed {seed}: {why}", file=sys.stderr)
        failed = failed or bool(tally.failures)
    if failed:
        sys.exit(1)


def fuzz_in_child(kind: str, count: int, seed: int, out: Path) -> Tally:
    """`fuzz` in another process, whose death is one more failure."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    current = spawn.RawValue("q", 0)
    with tempfile.TemporaryDirectory() as place:
        args = (kind, count, seed, out, Path(place), current, theirs)
        child = spawn.Process(target=fuzz, args=args)
        child.start()
        theirs.close()
        try:
            return ours.recv()
        except EOFError:
            child.join()
        finally:
            child.kill()
            child.join()
    case = make_case(TARGETS[kind](), kind, seed, current.value)
    kept = keep(case, kind, seed, current.value, out)
    return Tally(
        failures=[(current.value, f"the process died, exit code {child.exitcode}; {kept}")]
    )


def fuzz(kind: str, count: int, seed: int, out: Path, place: Path, current: Any, pipe: Any) -> None:
    """Make, read and judge the files in `place`; tell which is current, send the tally."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too
    signal.signal(signal.SIGALRM, stop)
    target, tally = TARGETS[kind](), Tally()
    with limited_memory():
        for n in range(count):
            current.value = n
            case = make_case(target, kind, seed, n)
            path = place / case.name
            path.write_bytes(case.content)
            verdict, seconds = judge(target, path, case)
            tally.slowest = max(tally.slowest, seconds)
            tally.accepted += verdict == "accepted"
            tally.refused += verdict == "refused"
            if verdict not in ("accepted", "refused"):
                where = keep(case, kind, seed, n, out) if len(tally.failures) < KEPT else ""
                tally.failures.append((n, f"{verdict}; {where}"))
    tally.peak = peak_memory()
    pipe.send(tally)


def make_case(target: Target, kind: str, seed: int, n: int) -> Case:
    """The n-th damaged file of this kind and seed."""
    return target.make(random.Random(f"{kind} {seed} {n}"))


def judge(target: Target, path: Path, case: Case) -> tuple[str, float]:
    """The word accepted, refused, or what is wrong; and the seconds that reading took."""
    result, began = None, time.perf_counter()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            result, verdict = target.read(path, case), "accepted"
        except BaseException as error:  # a panic in Rust is no Exception
            verdict = judge_error(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - began
    if warned:
        verdict = f"warns: {warned[0].message}"
    elif verdict == "accepted":
        try:
            if not target.is_right(case, result):
                verdict = "accepted, but not as it is"
        except Exception as error:  # the second reading finds nothing that could be right
            verdict = f"accepted, but {type(error).__name__}: {error}"
    return verdict, seconds


def judge_error(error: BaseException) -> str:
    """The word refused, or what is wrong with this error."""
    if not isinstance(error, JaxmnistError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error.__cause__, MemoryError):
        return f"took more than {MEMORY / 2**20:,.0f} MiB"
    if not str(error).isprintable():
        return f"the message is not one printable line: {str(error)!r}"
    return "refused"


def keep(case: Case, kind: str, seed: int, n: int, out: Path) -> str:
    """Write the file where a person finds it, and say where that is."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{kind}-{seed}-{n}-{case.name}"
    path.write_bytes(case.content)
    return f"kept as {path}"


def stop(*_: object) -> None:
    """End a case that takes too long."""
    raise TooSlowError(f"took more than {SECONDS} s")


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Within it the process can take only MEMORY more, where the system tells what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def peak_memory() -> int:
    """Most bytes that this process has held."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    tyro.cli(main)
