"""A sweep's results on disk: one CSV file, a row for each model and epoch, appended as they finish.

The first line, a "#" and JSON, says which sweep it is; `pandas.read_csv(path, comment="#")` reads
the rest. The rows of a chunk of models are appended by one write. A process that is killed while
it writes leaves the rows of an incomplete model at the end, which `ResultsFile` cuts off.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxmnist.errors import DataError, JaxmnistError, UsageError
from jaxmnist.files import atomic_write, flush
from jaxmnist.runs.lock import NO_LOCKS

Row = dict[str, str]  # column -> text
Models = dict[int, list[Row]]  # the rows of each model, epoch by epoch


class Results(NamedTuple):
    """What a results file holds."""

    header: dict[str, Any]  # "models", how many there will be; "ends"; "part"; the options
    columns: list[str]  # "model", swept options, "seed", "epoch", metrics, "diverged"
    models: Models  # those that are whole
    size: int  # bytes up to the end of the last whole model


class ResultsBuffer:
    """Results that are kept as long as this process runs."""

    note: str | None = None  # a line of warning

    def __init__(self) -> None:
        self.models: Models = {}

    def append(self, rows: Sequence[Row]) -> None:
        """Add the rows of whole models."""
        for row in rows:
            self.models.setdefault(int(row["model"]), []).append(row)

    def close(self) -> None:
        """Nothing is to be done."""


class ResultsFile(ResultsBuffer):
    """A results file that rows are appended to, by one process at a time."""

    def __init__(
        self, path: Path, header: Mapping[str, Any], columns: Sequence[str], *, resume: bool
    ) -> None:
        """Make the file, or open the one of the same sweep: to `resume`, or if it is finished.

        Args:
            path: the file.
            header: which sweep it is. "ends" are the epochs after which rows may end.
            columns: as in `Results`.

        Raises:
            UsageError: the file exists and is not to be resumed, or is another sweep's.
            DataError: it is there and damaged, or no results file at all.
            JaxmnistError: another process has it open.
            OSError: it cannot be written.
        """
        head = f"# {json.dumps(header)}\n{_lines([columns])}".encode()
        super().__init__()
        self._path, self._columns = path, columns
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._file: BinaryIO = open(number, "r+b", buffering=0)  # noqa: SIM115
        try:
            self.note = _lock(self._file, path)
            if head.startswith(self._file.read(len(head) + 1)):  # new, or killed while it began
                self._size = 0
                self._write(head)
                return
            found = read_results(path)
            check_same(path, found, header, columns)
            if not resume and unfinished(header, found.models):
                raise UsageError(f"{path} holds a part of this sweep; --resume continues it")
            self.models, self._size = found.models, found.size
            self._file.truncate(self._size)
        except BaseException:
            self.close()
            raise

    def append(self, rows: Sequence[Row]) -> None:
        """Add the rows of whole models, all or none; they are on the disk when this returns."""
        self._write(_lines([[row[name] for name in self._columns] for row in rows]).encode())
        super().append(rows)

    def _write(self, content: bytes) -> None:
        try:
            self._file.seek(self._size)
            done = 0
            while done < len(content):
                done += self._file.write(content[done:])
            self._size += done
            flush(self._file.fileno())
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            if isinstance(error, OSError):
                error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Close the file, and let others resume it."""
        self._file.close()


def read_results(path: Path) -> Results:
    """The whole models of a results file; rows of one that is incomplete at the end are left out.

    Raises:
        DataError: it is no results file, or it is damaged before its end.
        OSError: it cannot be read.
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # the last one is empty, or not whole
    try:
        header = json.loads(lines[0].removeprefix(b"# "))
        ends = set(header["ends"])
        columns = next(csv.reader([lines[1].decode()]))
    except (IndexError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}: no results of a sweep") from None
    rows, damaged = [], 0
    for number, line in enumerate(lines[2:], 3):
        row = _parse_row(line, columns)
        if row is None:
            damaged = damaged or number
        elif damaged:  # what a killed process leaves is at the end
            raise DataError(
                f"{path}: line {damaged} is damaged; repair it, or sweep into a new file"
            )
        else:
            rows.append(row)
    while rows and not _is_end(rows[-1], ends):
        rows.pop()
    models: Models = {}
    for number, row in enumerate(rows, 3):
        before = models.setdefault(int(row["model"]), [])
        if int(row["epoch"]) != len(before) + 1 or not int(row["model"]) < header["models"]:
            raise DataError(f"{path}: line {number} does not fit those before it")
        before.append(row)
    size = sum(len(line) + 1 for line in lines[: len(rows) + 2])
    return Results(header, columns, models, size)


def merge_results(paths: Sequence[Path]) -> Results:
    """The results of all the parts of a sweep, as one.

    Raises:
        UsageError: they are of different sweeps, or a part is named twice or incomplete.
        DataError, OSError: as in `read_results`.
    """
    parts = [read_results(path) for path in paths]
    first = parts[0]
    models: Models = {}
    header = first.header | {"part": None}
    for path, part in zip(paths, parts, strict=True):
        check_same(path, part, header | {"part": part.header.get("part")}, first.columns)
        if models.keys() & part.models.keys():
            raise UsageError(f"{path}: holds models that another of these files holds too")
        models.update(part.models)
    if missing := unfinished(header, models):
        of = {int(part.header["part"][1]) for part in parts if part.header.get("part")}
        where = f"; model {missing[0]} is one of part {missing[0] % of.pop() + 1}" if of else ""
        raise UsageError(f"{len(missing)} of {header['models']} models are not finished{where}")
    return Results(header, first.columns, dict(sorted(models.items())), 0)


def check_same(
    path: Path, found: Results, header: Mapping[str, Any], columns: Sequence[str]
) -> None:
    """Raise a UsageError where the file is not one of the sweep with this header."""
    names = dict.fromkeys([*header, *found.header])
    names.pop("versions", None)  # of packages: to be known, and no reason to refuse
    different = [name for name in names if found.header.get(name) != header.get(name)]
    if found.columns != list(columns):
        different.append("the columns")
    if different:
        raise UsageError(f"{path} holds another sweep: it differs in {', '.join(different)}")


def unfinished(header: Mapping[str, Any], models: Models) -> list[int]:
    """The models without rows up to an end; with several ends, any will do."""
    return [number for number in range(header["models"]) if not models.get(number)]


def write_results(path: Path, results: Results) -> None:
    """Write all of the results into a file, which appears whole or not at all."""
    cells = [[row[name] for name in results.columns] for m in results.models.values() for row in m]
    head = f"# {json.dumps(results.header)}\n"
    with atomic_write(path, durable=True) as file:
        file.write((head + _lines([results.columns, *cells])).encode())


def part_path(path: Path, part: int, parts: int) -> Path:
    """Where part number `part`, from 1, keeps its results: "x.csv" gives "x.part-1-of-4.csv"."""
    return path.with_name(f"{path.stem}.part-{part}-of-{parts}{path.suffix}")


def _parse_row(line: bytes, columns: Sequence[str]) -> Row | None:
    """The row, or None if the line is not one."""
    with contextlib.suppress(ValueError, csv.Error, StopIteration):
        row = dict(zip(columns, next(csv.reader([line.decode()])), strict=True))
        if int(row["model"]) >= 0 and int(row["epoch"]) >= 1 and row["diverged"] in ("0", "1"):
            return row
    return None


def _is_end(row: Row, ends: set[int]) -> bool:
    """Whether a model's rows may end with this one."""
    return int(row["epoch"]) in ({int(row["epochs"])} if "epochs" in row else ends)


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _lock(file: BinaryIO, path: Path) -> str | None:
    """Keep other processes out; a line of warning where the file system cannot."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JaxmnistError(f"{path}: another process is writing to it") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return f"{path} cannot be locked ({error.strerror}): let no other process write to it"
    return None
