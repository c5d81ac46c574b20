"""scripts/benchmark.py: its figures, and that it goes on where a peer cannot."""

import json
import sys

import pytest

from jaxmnist.errors import Stopped
from tests.helpers import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import benchmark

    return benchmark


@pytest.fixture
def measure(benchmark):
    return sys.modules["_measure"]


@pytest.fixture
def results(benchmark):
    return sys.modules["_results"]


def test_flops_by_hand(measure):
    # One image through 3-2: six products forward, six for the weights' gradient, an addition each.
    assert measure.training_flops((3, 2), 1) == 24
    # 3-2-1 adds 2 products forward, 2 for the weights and 2 for the gradient of its inputs.
    assert measure.training_flops((3, 2, 1), 1) == 36
    forward = 784 * 128 + 128 * 64 + 64 * 10
    by_hand = 2 * 300_000 * (2 * forward + 128 * 64 + 64 * 10)
    assert measure.training_flops((784, 128, 64, 10), 300_000) == by_hand == 136_320_000_000


def test_spread(measure):
    assert measure.spread([3.0, 1.0, 2.0, 10.0]) == {
        "min": 1.0,
        "median": 2.5,
        "max": 10.0,
        "runs": [3.0, 1.0, 2.0, 10.0],
    }
    assert measure.spread([]) is None


def test_nested_spans_count_once(measure):
    assert measure.covered([(4, 5), (0, 3), (1, 2), (2, 3.5)]) == 4.5
    assert measure.covered([]) == 0


def test_a_process_is_measured_by_itself(measure):
    ours = bytearray(300_000_000)  # is not counted into the child's memory
    code = "import sys, time; time.sleep(0.2); print('out'); print('err', file=sys.stderr); exit(3)"
    run = measure.measure([sys.executable, "-c", code], measure.clean_environment())
    assert (run.code, run.stdout, run.stderr) == (3, "out\n", "err\n")
    assert 0.2 < run.seconds < 5
    assert 1_000_000 < run.peak_bytes < len(ours) / 3
    run = measure.measure(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        measure.clean_environment(),
        timeout=1,
    )
    assert run.code < 0
    assert run.seconds < 10


def test_no_settings_of_threads_reach_a_program(measure, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_FLAGS", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    assert set(measure.clean_environment(MORE="2")) <= {*measure.KEPT, "MORE"}


def test_trainings_are_read(results):
    words = """Data: here
Epoch 1/2   Training loss: 0.435781   test loss: 0.393910   test accuracy: 89.02%
Epoch 2/2   Training loss: 0.392068   test loss: 0.360493   test accuracy: 89.96%

Trained on here
  5 epochs of 938 steps on cpu (cpu)
  load 0.57 s, compile 1.77 s, train 1.74 s, evaluate 0.07 s
"""
    expected = {"train_seconds": 1.74, "loss": 0.392068, "accuracy": pytest.approx(0.8996)}
    assert results.read_result(words) == expected
    assert results.read_result('a line\n{"loss": 2}\n') == {"loss": 2}
    for nothing in ("", "Training loss: 0.4\n", "{"):
        with pytest.raises(ValueError):  # noqa: PT011
            results.read_result(nothing)


def test_one_run_on_mnist(script, mnist_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMNIST_DATA_DIR", str(mnist_dir))
    out, chart = tmp_path / "out.json", tmp_path / "chart.png"
    options = ("--only", "ours", "import", "--runs", 1, "--out", out, "--chart", chart)
    code, stdout, _ = script("benchmark.py", *options)
    assert code == 0
    assert chart.read_bytes().startswith(b"\x89PNG")
    summary = json.loads(out.read_text())
    assert summary["machine"]["cores"] >= 1
    assert {"numpy", "jax"} <= set(summary["machine"]["versions"])
    assert min(summary["peak_gflops"].values()) > 1
    # Not NumPy, whose threads wait so busily that it takes a minute where other tests run too.
    ours, imports = summary["programs"]["ours"], summary["programs"]["import"]
    assert ours["problem"] is None
    assert 0.37 < ours["loss"] < 0.41
    assert 0.885 < ours["accuracy"] < 0.915
    train, whole = ours["train_seconds"]["median"], ours["whole_seconds"]["median"]
    assert 0 < train < whole
    assert ours["images_per_second"] == pytest.approx(300_000 / train)
    assert ours["gflops"] == pytest.approx(136.32 / train)
    assert ours["peak_bytes"] > 50e6
    assert len(imports["whole_seconds"]["runs"]) == 1
    expected = pytest.approx(imports["whole_seconds"]["median"] / whole)
    assert imports["whole_seconds_ratio"]["median"] == expected
    assert imports["train_seconds"] is None
    for row in (ours, imports):
        assert row["label"] in stdout


STEPS = """import json, os
print(json.dumps({"loop_to_scan": float(os.environ.get("PJRT_NPROC", 1.5))}))"""


@pytest.fixture
def programs(benchmark, monkeypatch, tmp_path):
    """Stand-ins for the programs, which take no time, and no MNIST."""

    def program(name, code, **options):
        path = tmp_path / f"{name}.py"
        path.write_text(code)
        return sys.modules["_programs"].Program(name, path, **options)

    peak = {"platform": "cpu", "device": "cpu", "numpy": 100.0, "xla": 90.0}
    good = '{"train_seconds": 2.0, "loss": 0.39, "accuracy": 0.9}'
    made = {
        "ours": program("ours", f"print({good!r})", ours=True),
        "fails": program("fails", "raise SystemExit('no such thing')"),
        "silent": program("silent", "pass"),
        "wrong": program("wrong", f"print({good.replace('0.39', '2.3')!r})"),
        "absent": program("absent", "pass", needs="no_such_package"),
        "graphs": program("graphs", "pass", gpu=True),
        "last": program("last", f"print({good.replace('2.0', '3.0')!r})"),
        "embedded": program("embedded", STEPS, ours=True, embedded=True),
        "embedded-1": program("embedded-1", STEPS, ours=True, embedded=True, one_thread=True),
    }
    monkeypatch.setattr(benchmark, "PROGRAMS", made)
    monkeypatch.setattr(benchmark.Bench, "prepare", lambda bench: None)
    monkeypatch.setattr(benchmark.Bench, "peak", lambda bench: peak)


@pytest.mark.usefixtures("programs")
def test_a_peer_that_cannot_is_named_and_the_others_go_on(benchmark, capsys, tmp_path):
    out = tmp_path / "out.json"
    benchmark.main(benchmark.Options(runs=3, out=out))
    text, summary = capsys.readouterr().out, json.loads(out.read_text())
    assert "Skipped: absent (no_such_package is not installed)" in text
    assert "Skipped: graphs (no GPU)" in text
    assert "[!] fails: failed: exit code 1: no such thing" in text
    assert "[!] silent: failed: it printed no result" in text
    assert "[!] wrong: its loss is 2.3000, outside 0.37 to 0.41" in text
    rows = summary["programs"]
    assert [name for name, row in rows.items() if row["problem"]] == ["fails", "silent", "wrong"]
    assert len(rows["last"]["whole_seconds"]["runs"]) == 3
    assert rows["last"]["train_seconds_ratio"]["median"] == 1.5
    assert rows["last"]["share_of_peak"] == pytest.approx(136.32 / 3 / 100)


def test_ratios_are_of_programs_that_ran_in_the_same_turn(benchmark, measure):
    """By hand: a machine twice as slow in the second turn; and one run of ours that failed."""

    def record(*seconds):
        record = benchmark.Record()
        for turn, whole in enumerate(seconds, 1):
            result = json.dumps({"train_seconds": whole / 2, "loss": 0.39, "accuracy": 0.9})
            code = 0 if whole else 1
            record.add(turn, measure.Run(whole, 1_000_000, code, result, "it failed"))
        return record

    ours, other = record(1.0, 2.0, 0.0), record(1.5, 3.2, 9.0)
    row = benchmark.summarize("NumPy, OpenBLAS", other, ours, 100.0)
    assert row["whole_seconds_ratio"]["runs"] == row["train_seconds_ratio"]["runs"] == [1.5, 1.6]
    assert row["whole_seconds"]["median"] == 3.2
    assert ours.problem == "failed: exit code 1: it failed"
    unsure = benchmark.summarize("NumPy, OpenBLAS", record(0.9, 2.2), record(1.0, 2.0), 100.0)
    machine = {
        "cpu": "x",
        "cores": 2,
        "python": "3",
        "versions": {},
        "load_average": 0,
        "device": "",
    }
    summary = {"machine": machine, "runs": 2, "stopped": None, "skipped": {}, "embedded": {}}
    summary |= {"peak_gflops": {"numpy": 1.0, "xla": 1.0}, "programs": {"numpy": unsure}}
    assert "OpenBLAS [~]" in benchmark.text(summary)
    assert "[~] numpy: faster than ours in one turn and slower in another" in benchmark.text(
        summary
    )


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("how", ["Ctrl-C", "--time-limit 0.0001"])
def test_what_was_measured_is_kept(benchmark, monkeypatch, capsys, tmp_path, how):
    run, count, out = benchmark.Bench.run, iter(range(100)), tmp_path / "out.json"

    def interrupted(bench, program):
        if next(count) == 8 and how == "Ctrl-C":
            raise KeyboardInterrupt
        return run(bench, program)

    monkeypatch.setattr(benchmark.Bench, "run", interrupted)
    limit = 0.0001 if how != "Ctrl-C" else 0.0
    options = benchmark.Options(runs=100, only=("ours", "last"), out=out, time_limit=limit)
    if how == "Ctrl-C":
        with pytest.raises(Stopped, match="interrupted") as stop:
            benchmark.main(options)
        assert stop.value.code == 130
    else:
        benchmark.main(options)
    assert f"Stopped early by {how}." in capsys.readouterr().out
    summary = json.loads(out.read_text())
    assert summary["stopped"] == how
    if how == "Ctrl-C":
        assert len(summary["programs"]["last"]["train_seconds_ratio"]["runs"]) == 3


@pytest.mark.usefixtures("programs")
def test_embedded(benchmark, capsys, tmp_path):
    out = tmp_path / "out.json"
    benchmark.main(benchmark.Options(runs=2, only=("embedded", "embedded-1"), out=out))
    text, summary = capsys.readouterr().out, json.loads(out.read_text())
    assert "embedded, loop to scan: 1.50 (1.50 to 1.50)" in text
    assert "embedded-1, loop to scan: 1.00 (1.00 to 1.00)" in text
    assert "whole process" not in text  # no table without rows
    assert len(summary["embedded"]["embedded-1"]["figures"]["loop_to_scan"]["runs"]) == 2


@pytest.mark.parametrize(("platform", "skipped"), [("cpu", None), ("gpu", "on a CPU only")])
def test_one_thread_is_timed_on_cpus(benchmark, platform, skipped):
    assert benchmark.why_not(benchmark.PROGRAMS["embedded-1"], platform) == skipped


@pytest.mark.usefixtures("programs")
def test_peers_none(benchmark, capsys):
    benchmark.main(benchmark.Options(runs=1, peers="none"))
    assert "last" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--only numpi", ["numpi", "numpy"]),
        ("--runs 0", ["--runs", "at least 1"]),
        ("--profile --chart x.png", ["--chart", "--profile"]),
        ("--peers some", ["--peers", "some"]),
        ("--out /no/such/directory/x.json", ["/no/such/directory"]),
    ],
)
def test_wrong_usage(script, options, words):
    code, _, stderr = script("benchmark.py", *options.split())
    assert code == 2
    for word in words:
        assert word in stderr
