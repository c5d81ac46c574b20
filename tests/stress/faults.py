"""Let everything fail that a training run reads and writes, and see that nothing is lost.

Prints a Markdown table. Each fault is done to a run of its own, which must go on or end as it
should and say so in a line. Then the cause is removed, and the same command must end as a run that
nobody disturbed: weights, metrics, losses and the whole state, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import _cli as cli
from _fault_cases import CASES, Case, served
from _faults import Fault, injected
from crash import ending, losses

SCRIPTS = Path(__file__).parent
CHILD = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import faults; faults.undergo()"
UNDISTURBED = -1
STALL = 10  # seconds; to import TFDS takes some of them
TOLD = re.compile("(Warning|WARNING|Note|train.py: error): |MNIST is neither|http|stopping as soon")


@dataclasses.dataclass(frozen=True)
class Config:
    """The options. A fault and what follows take about five seconds on two CPU cores."""

    dataset: str = "auto"
    """What is trained on where saving fails, as in scripts/train.py."""
    data_dir: Path | None = None
    """Directory with MNIST's four .gz files, to be read and served; JAXMNIST_DATA_DIR does the
    same. Without it what loads MNIST is left out."""


class Row(NamedTuple):
    """One of the table."""

    what: str
    fault: str
    outcome: str
    message: str
    lost: str


def main(config: Config) -> None:
    """Do all of them: saving in one thread, loading in another."""
    import tqdm

    from jaxmnist import JaxmnistError

    files = config.data_dir or os.environ.get("JAXMNIST_DATA_DIR")
    with (
        tempfile.TemporaryDirectory(prefix="jaxmnist-faults-") as name,
        ThreadPoolExecutor() as pool,
        tqdm.tqdm(total=len(CASES), unit="fault", leave=False, disable=None) as bar,
    ):

        def work(bench: Bench) -> list[tuple[int, Row]]:
            rows = []
            for number, case in enumerate(CASES):
                if case.kind in bench.kinds:
                    rows.append((number, bench.row(number)))
                    bar.update()
            return rows

        benches: list[Bench] = [Saving(Path(name, "saving"), config.dataset)]
        if files:
            benches.append(Loading(Path(name, "loading"), Path(files).resolve()))
        rows = dict(row for part in pool.map(work, benches) for row in part)
    print("| what | fault | the run | its last message | lost |")
    print("| --- | --- | --- | --- | --- |")
    for number in sorted(rows):
        print("| " + " | ".join(rows[number]) + " |")
    bad = [rows[number] for number in sorted(rows) if rows[number].lost != "nothing"]
    if bad:
        raise JaxmnistError(f"{len(bad)} went wrong; the first: {', '.join(bad[0])}")


class Bench:
    """A place where runs are disturbed, and what they must end in."""

    kinds: tuple[str, ...]

    def __init__(self, root: Path, **environment: str) -> None:
        root.mkdir()
        self.root = root
        self.environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}

    def set_up(self, kind: str, place: Path) -> None:
        """Put into `place` what a run begins with."""
        raise NotImplementedError

    def options(self, place: Path) -> list[str]:
        """The run's options."""
        raise NotImplementedError

    def serving(self, place: Path, case: Case | None) -> contextlib.AbstractContextManager[str]:
        """A server's address, where the run needs one."""
        return contextlib.nullcontext("")

    def is_right(self, place: Path, printed: str, disturbed: bool) -> bool:
        """Whether that is what the run had to end in."""
        raise NotImplementedError

    def left(self, place: Path) -> Iterator[str]:
        """What should not be there."""
        raise NotImplementedError

    def run(self, place: Path, case: Case | None = None) -> subprocess.CompletedProcess[str]:
        """Run scripts/train.py in a process of its own, disturbed or not."""
        number = UNDISTURBED if case is None else CASES.index(case)
        with self.serving(place, case) as url:
            return subprocess.run(
                [sys.executable, "-c", CHILD, str(number), url, *self.options(place)],
                env={**self.environment, "TMPDIR": str(place)},
                cwd=place,
                capture_output=True,
                text=True,
                timeout=300,
            )

    def row(self, number: int) -> Row:
        """Do it and see what became of it."""
        case, place = CASES[number], self.root / str(number)
        self.set_up(case.kind, place)
        done = self.run(place, case)
        problems = [*misses(case, done), *self.left(place)]
        outcome = f"ends with {done.returncode}" if done.returncode else "goes on"
        if "NOT MNIST" in done.stdout:
            outcome = "trains on drawn digits"
        if done.returncode or not self.is_right(place, done.stdout, disturbed=True):
            again = self.run(place)
            if again.returncode or not self.is_right(place, again.stdout, disturbed=False):
                problems.append(f"the next start does not end right {again.stderr.strip()}")
            outcome += "; the next start ends right"
        lines = [line.partition("error: ")[2] or line for line in done.stderr.splitlines()]
        message = lines[-1].replace(f"{self.root}/", "") if lines else ""
        shutil.rmtree(place)
        return Row(case.what, case.fault(), outcome, message, "; ".join(problems) or "nothing")


class Saving(Bench):
    """Runs of three epochs into a directory."""

    kinds = ("save", "resume")

    def __init__(self, root: Path, dataset: str) -> None:
        super().__init__(root)
        self.dataset, self.epochs = dataset, 2
        begun, whole = root / "begun", root / "whole"
        begun.mkdir()
        self.run(begun)
        self.epochs = 3
        shutil.copytree(begun, whole)
        printed = self.run(whole).stdout
        self.begun, self.expected = begun / "out", (ending(whole / "out"), losses(printed))

    def set_up(self, kind: str, place: Path) -> None:
        """Nothing, or a run of two epochs."""
        place.mkdir()
        if kind == "resume":
            shutil.copytree(self.begun, place / "out")

    def options(self, place: Path) -> list[str]:
        """With a momentum, that it may be lost."""
        options = "--batch-size 500 --momentum 0.9 --resume --keep 2 --out out"
        return [*options.split(), "--dataset", self.dataset, "--epochs", str(self.epochs)]

    def is_right(self, place: Path, printed: str, disturbed: bool) -> bool:
        """Whether everything that is there and was printed is the same."""
        return (ending(place / "out"), losses(printed)) == self.expected

    def left(self, place: Path) -> Iterator[str]:
        """Checkpoints that are not whole, half-written files, files in wrong places."""
        from jaxmnist import JaxmnistError
        from jaxmnist.files import leftovers
        from jaxmnist.runs.checkpoint_file import read

        for path in (place / "out").glob("checkpoint-*.safetensors"):
            try:
                read(path)
            except JaxmnistError as error:
                yield str(error)
        for path in (*leftovers(place / "out"), *place.glob("[!o]*")):
            yield f"{path.name} is left behind"


class Loading(Bench):
    """Runs of one epoch on MNIST from files, from the cache or from a server."""

    kinds = ("load", "cached", "serve")

    def __init__(self, root: Path, files: Path) -> None:
        from jaxmnist.datasets import cache

        unset = ("JAXMNIST_DATA_DIR", "TFDS_DATA_DIR", "http_proxy", "HTTP_PROXY", "ALL_PROXY")
        places = {"HOME": str(root), "JAXMNIST_CACHE_DIR": str(root / "cache")}
        super().__init__(root, **dict.fromkeys((*unset, "all_proxy"), ""), **places)
        self.files, self.cache = files, root / "cache"
        self.cache.mkdir(mode=0o700)
        for drawn in cache.cache_dir().glob("synthetic-*.npz"):  # it takes long to draw them
            (self.cache / drawn.name).symlink_to(drawn)
        self.expected = {}
        for kind, words in (("serve", "refuses connections"), ("load", "")):
            self.set_up(kind, root / kind)
            case = next((case for case in CASES if case.cause == words), None)
            self.expected[kind] = losses(self.run(root / kind, case).stdout)

    def set_up(self, kind: str, place: Path) -> None:
        """Links to the files, or none; the cache of an earlier run, or none."""
        (place / "mnist").mkdir(parents=True)
        for path in self.files.glob("*.gz"):
            (place / "mnist" / path.name).symlink_to(path)
        (self.cache / "mnist.npz").unlink(missing_ok=True)
        if kind == "cached":
            self.run(place)
        if kind == "serve":
            shutil.rmtree(place / "mnist")

    def options(self, place: Path) -> list[str]:
        """Without files there is a server."""
        options = ["--data-dir", "mnist"] if (place / "mnist").exists() else []
        return ["--batch-size", "500", "--epochs", "1", *options]

    def serving(self, place: Path, case: Case | None) -> contextlib.AbstractContextManager[str]:
        """A server, good or bad."""
        if (place / "mnist").exists():
            return contextlib.nullcontext("")
        return served(self.files, case.cause if case and isinstance(case.cause, str) else "")

    def is_right(self, place: Path, printed: str, disturbed: bool) -> bool:
        """Whether it is MNIST's training, or that of drawn digits where they are told of."""
        drawn = disturbed and "NOT MNIST" in printed
        return losses(printed) == self.expected["serve" if drawn else "load"]

    def left(self, place: Path) -> Iterator[str]:
        """Half-written and temporary files."""
        from jaxmnist.files import leftovers

        for path in (*leftovers(self.cache), *place.glob("[!m]*")):
            yield f"{path.name} is left behind"


def misses(case: Case, done: subprocess.CompletedProcess[str]) -> Iterator[str]:
    """What the run did not tell as it should."""
    if case.code not in (None, done.returncode):
        yield f"exit code {done.returncode}"
    lines = done.stderr.splitlines()
    once = isinstance(case.cause, Fault) and case.cause.count == 1  # over before it is told, maybe
    if (not lines and case.says and not once) or (lines and case.says not in lines[-1]):
        yield f"does not say {case.says!r}"
    if (lines and not case.says) or not all(map(TOLD.match, lines)):
        yield f"says {done.stderr!r}"
    if len({re.sub(r"\d+", "", line) for line in lines}) < len(lines):
        yield "says the same again"


def undergo() -> None:
    """In the child: run scripts/train.py while it happens."""
    number, url, *options = sys.argv[1:]
    sys.argv = [str(SCRIPTS / "train.py"), *options]
    cause = CASES[int(number)].cause if int(number) != UNDISTURBED else ""
    if url:
        from jaxmnist.datasets import tfds as tfds_source

        tfds_source.probe.__defaults__ = (url,)
        defaults = tfds_source.download.__kwdefaults__ or {}
        defaults.update(base_url=url, stall_seconds=STALL)
    happening: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if isinstance(cause, Fault):
        happening = injected(cause)
    elif not isinstance(cause, str):
        happening = cause()
    try:
        with happening:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if isinstance(cause, Fault) and not cause.happened():
            print("this never happened", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
