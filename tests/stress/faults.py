"""Let everything fail that a training run reads and writes, and see that nothing is lost.

Each fault is done to a run of its own, which must go on or end as it should and say so in a line.
Then the cause is removed, and the same command must end as an undisturbed run: weights, metrics,
losses and the whole state, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tqdm

from jaxmnist.datasets import cache
from jaxmnist.errors import JaxmnistError
from jaxmnist.runs import checkpoint_file
from tests import command_line
from tests.helpers import ending, epoch_lines
from tests.stress.fault_cases import CASES, Case, redirect_downloads, served
from tests.stress.injection import Fault, child_environment, run_train

CHILD = "from tests.stress.faults import run_disturbed; run_disturbed()"
UNDISTURBED = -1
LINE = re.compile("(Warning|WARNING|Note|train.py: error): |Downloading|Making|stopping as soon")


class Row(NamedTuple):
    """One of the table."""

    what: str
    fault: str
    outcome: str
    message: str
    lost: str


def main(dataset: str = "auto", data_dir: Path | None = None) -> None:
    """Let everything fail that a training run reads and writes, and see that nothing is lost.

    Prints a Markdown table. A fault and what follows take about five seconds on two CPU cores.

    Args:
        dataset: what to train on where saving fails, as in scripts/train.py.
        data_dir: directory with MNIST's four .gz files, to be read and served; JAXMNIST_DATA_DIR
            does the same. Without it the faults of loading are left out.
    """
    files = data_dir or os.environ.get("JAXMNIST_DATA_DIR")
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

        benches: list[Bench] = [Saving(Path(name, "saving"), dataset)]
        if files:
            benches.append(Loading(Path(name, "loading"), Path(files).resolve()))
        rows = dict(row for part in pool.map(work, benches) for row in part)
    print("| what | fault | the run | its last message | lost |")
    print("| --- | --- | --- | --- | --- |")
    for number in sorted(rows):
        print("| " + " | ".join(rows[number]) + " |")
    bad = [rows[number] for number in sorted(rows) if rows[number].lost != "nothing"]
    if bad:
        sys.exit(f"error: {len(bad)} went wrong; the first: {', '.join(bad[0])}")


class Bench:
    """A place where runs are disturbed, and what they must end in."""

    kinds: tuple[str, ...]

    def __init__(self, root: Path, **environment: str) -> None:
        root.mkdir()
        self.root = root
        self.environment = child_environment(**environment)

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
            )

    def row(self, number: int) -> Row:
        """Do it and see what became of it."""
        case, place = CASES[number], self.root / str(number)
        self.set_up(case.kind, place)
        done = self.run(place, case)
        problems = [*misses(case, done.returncode, done.stderr), *self.left(place)]
        outcome = f"ends with {done.returncode}" if done.returncode else "goes on"
        if "NOT MNIST" in done.stdout:
            outcome = "trains on synthetic digits"
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
        self.run(begun).check_returncode()
        self.epochs = 3
        shutil.copytree(begun, whole)
        printed = self.run(whole).stdout
        self.begun, self.expected = begun / "out", (ending(whole / "out"), epoch_lines(printed))

    def set_up(self, kind: str, place: Path) -> None:
        """Nothing, or a run of two epochs."""
        place.mkdir()
        if kind == "resume":
            shutil.copytree(self.begun, place / "out")

    def options(self, place: Path) -> list[str]:
        """With a momentum, which could be lost."""
        options = "--batch-size 500 --momentum 0.9 --resume --keep 2 --out out"
        return [*options.split(), "--dataset", self.dataset, "--epochs", str(self.epochs)]

    def is_right(self, place: Path, printed: str, disturbed: bool) -> bool:
        """Whether everything that is there and was printed is the same."""
        return (ending(place / "out"), epoch_lines(printed)) == self.expected

    def left(self, place: Path) -> Iterator[str]:
        """Checkpoints that are not whole, half-written files, files in wrong places."""
        for path in (place / "out").glob("checkpoint-*.safetensors"):
            try:
                checkpoint_file.read(path)
            except JaxmnistError as error:
                yield str(error)
        for path in (*place.glob("out/*.tmp"), *place.glob("[!o]*")):
            yield f"{path.name} is left behind"


class Loading(Bench):
    """Runs of one epoch on MNIST from files, from the cache or from a server."""

    kinds = ("load", "cached", "serve")

    def __init__(self, root: Path, files: Path) -> None:
        unset = ("JAXMNIST_DATA_DIR", "TFDS_DATA_DIR")
        unset += (
            "http_proxy",
            "HTTP_PROXY",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        )
        places = {"HOME": str(root), "JAXMNIST_CACHE_DIR": str(root / "cache")}
        super().__init__(root, **dict.fromkeys(unset, ""), **places)
        self.files, self.cache = files, root / "cache"
        self.cache.mkdir(mode=0o700)
        for made in cache.cache_dir().glob("synthetic-*.npz"):  # it takes long to make them
            (self.cache / made.name).symlink_to(made)
        self.expected = {}
        for kind, words in (("serve", "refuses connections"), ("load", "")):
            self.set_up(kind, root / kind)
            case = next((case for case in CASES if case.cause == words), None)
            self.expected[kind] = epoch_lines(self.run(root / kind, case).stdout)

    def set_up(self, kind: str, place: Path) -> None:
        """Links to the files, or none; the cache of an earlier run, or none."""
        (place / "mnist").mkdir(parents=True)
        for path in self.files.glob("*.gz"):
            (place / "mnist" / path.name).symlink_to(path)
        (self.cache / "mnist.npz").unlink(missing_ok=True)
        if kind == "cached":
            self.run(place).check_returncode()
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
        """Whether it is MNIST's training, or that of synthetic digits where it says so."""
        synthetic = disturbed and "NOT MNIST" in printed
        return epoch_lines(printed) == self.expected["serve" if synthetic else "load"]

    def left(self, place: Path) -> Iterator[str]:
        """Half-written and temporary files."""
        for path in (*self.cache.glob("*.tmp"), *place.glob("[!m]*")):
            yield f"{path.name} is left behind"


def misses(case: Case, code: int, stderr: str) -> Iterator[str]:
    """What is wrong with the exit code and the messages of the disturbed run."""
    if case.code not in (None, code):
        yield f"exit code {code}"
    lines = stderr.splitlines()
    once = isinstance(case.cause, Fault) and case.cause.count == 1  # maybe over before it is told
    if (not lines and case.says and not once) or (lines and case.says not in lines[-1]):
        yield f"does not say {case.says!r}"
    if (lines and not case.says) or not all(map(LINE.match, lines)):
        yield f"says {stderr!r}"
    if len({re.sub(r"\d+", "", line) for line in lines}) < len(lines):
        yield "says the same again"


def run_disturbed() -> None:
    """In the child: run scripts/train.py while a case's fault happens."""
    number, url, *options = sys.argv[1:]
    case = CASES[int(number)] if int(number) != UNDISTURBED else None
    if url:
        # Only a server that keeps silent is given up early: however slow this machine is, it keeps
        # silent for longer.
        silent = case is not None and case.cause in ("never answers", "stalls")
        redirect_downloads(url, seconds=1.0 if silent else None)
    try:
        with case.happening() if case else contextlib.nullcontext():
            run_train(options)
    finally:
        if case and isinstance(case.cause, Fault) and not case.cause.happened():
            print("this never happened", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main)
