"""A sweep's results file: whole models only, whatever happens to the process that writes."""

import csv
import os
import subprocess
import sys

import pytest

from jaxmnist.errors import DataError, JaxmnistError, UsageError
from jaxmnist.runs.sweep_file import (
    ResultsFile,
    merge_results,
    part_path,
    read_results,
    write_results,
)

HEADER = {"models": 4, "ends": [2], "part": None, "options": {"loss": "nll"}}
COLUMNS = ["model", "hidden", "seed", "epoch", "test_loss", "diverged"]


def rows(model, epochs=(1, 2)):
    values = {"model": str(model), "hidden": "128,64", "seed": "0", "diverged": "0"}
    return [{**values, "epoch": str(epoch), "test_loss": f"0.{model}{epoch}"} for epoch in epochs]


def write(path, *models, header=HEADER, resume=False):
    file = ResultsFile(path, header, COLUMNS, resume=resume)
    for model in models:
        file.append(rows(model))
    file.close()
    return path.read_bytes()


def test_what_is_written_is_read(tmp_path):
    content = write(tmp_path / "x.csv", 0, 3)
    results = read_results(tmp_path / "x.csv")
    assert results.header == HEADER
    assert results.columns == COLUMNS
    assert results.models == {0: rows(0), 3: rows(3)}
    assert results.size == len(content)


def test_any_reader_of_csv_reads_it(tmp_path):
    lines = write(tmp_path / "x.csv", 0).decode().splitlines()
    table = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["test_loss"] for row in table] == ["0.01", "0.02"]
    assert [row["hidden"] for row in table] == ["128,64"] * 2


def test_cut_off_at_any_byte_it_resumes_to_the_same(tmp_path):
    whole = write(tmp_path / "whole.csv", 0, 1, 2)
    path = tmp_path / "x.csv"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        file = ResultsFile(path, HEADER, COLUMNS, resume=True)
        assert set(file.models) <= {0, 1, 2}
        for model in {0, 1, 2} - set(file.models):
            file.append(rows(model))
        file.close()
        assert path.read_bytes() == whole, size


def test_zeros_at_the_end_are_cut_off(tmp_path):
    """As a power cut can leave them."""
    whole = write(tmp_path / "x.csv", 0)
    for rest in (b"\0" * 100, b"\0\n\0\0\n", rows_as_bytes(1)[:5] + b"\n"):
        (tmp_path / "x.csv").write_bytes(whole + rest)
        assert read_results(tmp_path / "x.csv").size == len(whole)


def rows_as_bytes(model):
    return b"".join(f"{model},,0,{epoch},0.5,0\n".encode() for epoch in (1, 2))


def test_the_end_of_a_model_can_be_its_own(tmp_path):
    """With swept epochs each model has its own end; with halving there are several."""
    path, columns = tmp_path / "x.csv", [*COLUMNS[:2], "epochs", *COLUMNS[2:]]
    file = ResultsFile(path, {**HEADER, "ends": [1, 3]}, columns, resume=False)
    file.append([{**row, "epochs": "3"} for row in rows(0, (1, 2, 3))])
    file.append([{**row, "epochs": "3"} for row in rows(1, (1,))])  # torn
    file.close()
    assert list(read_results(path).models) == [0]
    path.unlink()
    file = ResultsFile(path, {**HEADER, "ends": [1, 3]}, COLUMNS, resume=False)
    file.append(rows(0, (1,)))
    file.append(rows(0, (2,)))  # torn: the second rung ends with the third epoch
    file.close()
    assert read_results(path).models == {0: rows(0, (1,))}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace("0.01", "0.01,7"), "line 3 is damaged"),
        (lambda text: text.replace(",1,0.01", ",x,0.01"), "line 3 is damaged"),
        (lambda text: text.replace(",1,0.01", ",2,0.01"), "line 3 does not fit"),
        (lambda text: text.replace('0,"128,64",0,2', '1,"128,64",0,2'), "line 4 does not fit"),
        (lambda text: text.replace("# {", "# ["), "no results"),
        (lambda text: text.replace('"ends"', '"end"'), "no results"),
        (lambda text: "a,b\n1,2\n", "no results"),
        (lambda text: "", "no results"),
    ],
)
def test_damage_is_named(tmp_path, damage, words):
    path = tmp_path / "x.csv"
    write(path, 0, 1)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=words):
        read_results(path)


def test_another_file_is_never_touched(tmp_path):
    path = tmp_path / "x.csv"
    for content in ("precious\n", write(path, 0).decode()):
        path.write_text(content)
        other = {**HEADER, "options": {"loss": "cross_entropy"}}
        with pytest.raises((UsageError, DataError), match=r"--resume continues|no results"):
            ResultsFile(path, HEADER, COLUMNS, resume=False)
        with pytest.raises((UsageError, DataError), match=r"differs in options|no results"):
            ResultsFile(path, other, COLUMNS, resume=True)
        with pytest.raises((UsageError, DataError), match=r"differs in the columns|no results"):
            ResultsFile(path, HEADER, COLUMNS[1:], resume=True)
        assert path.read_text() == content


def test_a_finished_sweep_can_be_asked_for_again(tmp_path):
    whole = write(tmp_path / "x.csv", 0, 1, 2, 3)
    file = ResultsFile(tmp_path / "x.csv", HEADER, COLUMNS, resume=False)
    file.close()
    assert list(file.models) == [0, 1, 2, 3]
    assert (tmp_path / "x.csv").read_bytes() == whole


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    file = ResultsFile(tmp_path / "x.csv", HEADER, COLUMNS, resume=False)
    assert "x.csv cannot be locked (No locks available)" in file.note
    file.close()


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "x.csv"
    code = (
        "import sys; from pathlib import Path; from jaxmnist.runs.sweep_file import ResultsFile\n"
        f"file = ResultsFile(Path({str(path)!r}), {HEADER!r}, {COLUMNS!r}, resume=True)\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(JaxmnistError, match="another process"):
            ResultsFile(path, HEADER, COLUMNS, resume=True)
        other.stdin.close()
        other.wait()
    ResultsFile(path, HEADER, COLUMNS, resume=True).close()


@pytest.mark.parametrize("short", [False, True])
def test_a_full_disk_leaves_whole_models(tmp_path, monkeypatch, short):
    """Also where a part of the rows has been written before."""
    path = tmp_path / "x.csv"
    whole = write(path, 0)
    file = ResultsFile(path, HEADER, COLUMNS, resume=True)

    class Full:
        def __init__(self):
            self.calls = 0

        def __getattr__(self, name):
            return getattr(file_object, name)

        def write(self, content):
            self.calls += 1
            if short and self.calls == 1:
                return file_object.write(content[:7])
            raise OSError(28, "No space left on device")

    file_object = file._file
    monkeypatch.setattr(file, "_file", Full())
    with pytest.raises(OSError, match="No space left") as error:
        file.append(rows(1))
    assert error.value.filename == str(path)
    assert path.read_bytes() == whole
    assert list(file.models) == [0]
    file.close()


@pytest.mark.parametrize("number", [22, 38, 95])
def test_a_file_system_that_cannot_sync(tmp_path, monkeypatch, number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "x.csv", 0)
    assert list(read_results(tmp_path / "x.csv").models) == [0]


def test_parts_are_merged(tmp_path):
    paths = [part_path(tmp_path / "x.csv", part, 2) for part in (1, 2)]
    assert [path.name for path in paths] == ["x.part-1-of-2.csv", "x.part-2-of-2.csv"]
    write(paths[0], 0, 2, header={**HEADER, "part": [1, 2]})
    write(paths[1], 1, header={**HEADER, "part": [2, 2]})
    with pytest.raises(
        UsageError, match="1 of 4 models are not finished; model 3 is one of part 2"
    ):
        merge_results(paths)
    write(paths[1], 3, header={**HEADER, "part": [2, 2]}, resume=True)
    write_results(tmp_path / "merged.csv", merge_results(paths[::-1]))
    assert (tmp_path / "merged.csv").read_bytes() == write(tmp_path / "whole.csv", 0, 1, 2, 3)
    with pytest.raises(UsageError, match="another of these files holds"):
        merge_results([*paths, paths[0]])
    other = tmp_path / "other.csv"
    write(other, 3, header={**HEADER, "part": [2, 2], "options": {}})
    with pytest.raises(UsageError, match=r"other.csv holds another sweep: it differs in options"):
        merge_results([paths[0], other])
