"""scripts/benchmark.py: its figures, and that it goes on where a peer cannot."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import PATIENCE, ROOT, refused

# What a stand-in prints. The training has 136.32 GFLOP: counted by hand, an image takes
# 2 * (2 * forward + 128 * 64 + 64 * 10) with forward = 784 * 128 + 128 * 64 + 64 * 10.
RESULT = {"train_seconds": 2.0, "loss": 0.39, "accuracy": 0.9}
PEAK = {"platform": "cpu", "device": "cpu", "numpy": 100.0, "xla": 90.0}
WORDS = """Data: here
Epoch 1/2   Training loss: 0.435781   test loss: 0.393910   test accuracy: 89.02%
Epoch 2/2   Training loss: 0.392068   test loss: 0.360493   test accuracy: 89.96%

Trained on here
  5 epochs of 938 steps on cpu (cpu)
  load 0.57 s, compile 1.77 s, train 2.00 s, evaluate 0.07 s"""


def printing(result: object = RESULT, **changes: object) -> str:
    """A program that reports this."""
    return f"print({(result if isinstance(result, str) else json.dumps(result | changes))!r})"


def taking(*seconds: float) -> str:
    """A program whose training takes so long in its first run, its second, ..."""
    return f"""import json, pathlib
past = pathlib.Path(__file__ + ".runs")
turn = len(past.read_text()) if past.exists() else 0
past.write_text("x" * (turn + 1))
seconds = {seconds}
print(json.dumps({RESULT} | {{"train_seconds": seconds[min(turn, len(seconds) - 1)]}}))"""


@pytest.fixture
def start(tmp_path, mnist_dir):
    """Starts the script in a copy of scripts/ in which all that it times are stand-ins."""
    scripts = tmp_path / "scripts"
    shutil.copytree(ROOT / "scripts", scripts)

    def call(*options: object, **programs: str) -> subprocess.Popen:
        stand_ins = {path.stem: printing() for path in (scripts / "peers").glob("[!_]*.py")}
        stand_ins |= {"train": printing(WORDS), "matmul_peak": printing(PEAK)} | programs
        for name, code in stand_ins.items():
            (scripts / ("" if name == "train" else "peers") / f"{name}.py").write_text(code)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAXMNIST_DATA_DIR": str(mnist_dir)}
        command = [sys.executable, scripts / "benchmark.py", "--out", tmp_path / "out.json"]
        return subprocess.Popen(
            [*map(str, command), *map(str, options)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


@pytest.fixture
def run(start, tmp_path):
    """Runs it to its end: what it printed, and what it wrote."""

    def call(*options: object, **programs: str) -> tuple[str, dict]:
        process = start(*options, **programs)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, stderr
        return stdout, json.loads((tmp_path / "out.json").read_text())

    return call


@pytest.mark.stress
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


@pytest.mark.slow
def test_a_peer_that_cannot_is_named_and_the_others_go_on(run):
    names = ("ours", "numpy", "linen", "nnx", "torch-graphs", "import")
    text, summary = run(
        *("--runs", 3, "--only", *names),
        numpy_openblas="raise SystemExit('no such thing')",
        flax_linen="pass",
        flax_nnx=printing(loss=2.3),
        imports_only=printing(train_seconds=3.0),
    )
    assert "Skipped: torch-graphs (" in text  # there is no PyTorch, or no GPU
    assert "[!] numpy: failed: exit code 1: no such thing" in text
    assert "[!] linen: failed: it printed no result" in text
    assert "[!] nnx: its loss is 2.3000, outside 0.37 to 0.41" in text
    rows = summary["programs"]
    assert [name for name, row in rows.items() if row["problem"]] == ["numpy", "linen", "nnx"]
    ours, last = rows["ours"], rows["import"]
    assert (ours["loss"], ours["accuracy"]) == (0.392068, pytest.approx(0.8996))
    assert (ours["train_seconds"]["median"], last["train_seconds_ratio"]["median"]) == (2.0, 1.5)
    assert ours["images_per_second"] == 150_000
    assert last["share_of_peak"] == pytest.approx(136.32 / 3 / 100)
    whole = last["whole_seconds"]
    assert [whole[name] for name in ("min", "median", "max")] == sorted(whole["runs"])


def test_ratios_are_of_programs_that_ran_in_the_same_turn(run):
    """A machine that is twice as slow in the second turn, after a first one that warms up."""
    text, summary = run(
        *("--runs", 2, "--only", "ours", "numpy", "import"),
        train=taking(9.0, 1.0, 2.0),
        numpy_openblas=taking(9.0, 1.5, 3.2),
        imports_only=taking(9.0, 0.9, 2.2),
    )
    rows = summary["programs"]
    assert rows["numpy"]["train_seconds_ratio"]["runs"] == [1.5, 1.6]
    assert rows["numpy"]["train_seconds"]["runs"] == [1.5, 3.2]
    assert "[~] import: faster than ours in one turn and slower in another" in text


def test_a_process_is_measured_by_itself(run, monkeypatch):
    """Its memory is not that of the process that starts it, and no settings reach it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lines = "import os, sys; names = {'OMP_NUM_THREADS', 'PYTHONPATH'}\n"
    lines += "if names & set(os.environ): sys.exit(f'{names & set(os.environ)}')\n"
    _, summary = run(
        *("--runs", 1, "--only", "ours", "import"),
        train=lines + printing(),
        imports_only=lines + "big = b'x' * 300_000_000\n" + printing(),
    )
    rows = summary["programs"]
    assert [row["problem"] for row in rows.values()] == [None, None]
    assert 1e6 < rows["ours"]["peak_bytes"] < 60e6  # JAX alone takes more
    assert 300e6 < rows["import"]["peak_bytes"] < 360e6


@pytest.mark.stress
def test_ctrl_c_keeps_what_was_measured(start, sigint, tmp_path):
    process, past = start("--runs", 1000, "--only", "ours", train=taking(2.0)), None
    while past is None or past.stat().st_size < 5:  # the first was to warm up
        assert process.poll() is None
        time.sleep(0.01)
        found = list((tmp_path / "scripts").glob("train.py.runs"))
        past = found[0] if found else None
    process.send_signal(sigint)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    refused((process.returncode, stdout, stderr), 130, "interrupted", "are reported")
    assert "Stopped early by Ctrl-C." in stdout
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["stopped"] == "Ctrl-C"
    assert len(summary["programs"]["ours"]["train_seconds"]["runs"]) >= 3


def test_time_limit(run):
    text, summary = run("--runs", 1000, "--time-limit", 0.0001)
    assert "Stopped early by --time-limit 0.0001." in text
    assert "whole process" not in text  # no table without rows
    assert summary["stopped"] == "--time-limit 0.0001"


STEPS = """import json, os
print(json.dumps({"loop_to_scan": float(os.environ.get("PJRT_NPROC", 1.5))}))"""


@pytest.mark.slow
def test_embedded(run):
    options = ("--runs", 2, "--only", "embedded", "embedded-1")
    text, summary = run(*options, ours_embedded=STEPS)
    assert "Embedded, loop to scan: 1.50 (1.50 to 1.50)" in text
    assert "Embedded, one thread, loop to scan: 1.00 (1.00 to 1.00)" in text
    assert len(summary["embedded"]["embedded-1"]["figures"]["loop_to_scan"]["runs"]) == 2
    gpu = printing(PEAK, platform="gpu")
    text, summary = run(*options, ours_embedded=STEPS, matmul_peak=gpu)
    assert summary["skipped"] == {"embedded-1": "on a CPU only"}


def test_peers_none(run):
    _, summary = run("--runs", 1, "--peers", "none", ours_embedded=STEPS)
    assert set(summary["programs"]) == {"ours", "ours-cold"}


@pytest.mark.stress
def test_a_profile_counts_nested_spans_once(run, start):
    lines = "Finished tracing f in 0.2 sec\nFinished XLA compilation of f in 0.4 sec\n"
    code = f"import time; time.sleep(0.5); print({lines + WORDS!r})"
    text, summary = run("--profile", "--runs", 1, train=code)
    assert "| first start, s |" in text
    assert summary["cold"]["profile_seconds"].keys() == summary["warm"]["profile_seconds"].keys()
    seconds = summary["warm"]["profile_seconds"]
    whole = seconds.pop("whole")
    assert sum(seconds.values()) == pytest.approx(whole)
    assert seconds["compile"] == pytest.approx(0.4)
    assert seconds["trace"] == pytest.approx(0, abs=1e-6)
    assert (seconds["load"], seconds["train"]) == (0.57, 2.0)
    assert "| train " in text
    process = start("--profile", "--runs", 1, train="raise SystemExit('no such thing')")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    refused((process.returncode, stdout, stderr), 1, "scripts/train.py: ", "no such thing")


@pytest.mark.slow
def test_scale(run, tmp_path):
    pytest.importorskip("matplotlib")
    text, summary = run(
        *("--scale", "--runs", 2, "--chart", tmp_path / "scale.png"),
        ours_scan=printing(train_seconds=1.0),
        flax_linen=printing(train_seconds=0.8),
        numpy_openblas=printing(loss=2.3),
    )
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    rows = {(row["axis"], row["value"], row["program"]): row for row in summary["scale"]}
    assert {value for axis, value, _ in rows if axis == "batch"} == {16, 64, 256, 1024, 4096}
    assert rows["width", 256, "linen"]["job"]["hidden"] == [256, 256]
    for (axis, value, program), row in rows.items():
        assert row["job"]["images"] >= 8 * row["job"].get("batch", 64)
        if program == "linen":
            assert row["ratio"]["runs"] == [0.8, 0.8]
        models = value if axis == "models" else 1
        time = rows[axis, value, "ours"]["us_per_image"]["median"]
        assert time * row["job"]["images"] * models == pytest.approx(1e6)
    # The work of the notebook's batches: 60,000 images of 2 * (2 * forward + 128 * 64 + 64 * 10).
    notebook = rows["batch", 64, "ours"]
    assert notebook["share_of_peak"] == pytest.approx(
        notebook["job"]["images"] * 2 * (2 * 109_184 + 8_832) / 1e9 / 100
    )
    assert "[>] models at once 16, linen: ahead of ours by more than 10%" in text
    assert "[!] images in a batch 64, numpy: its loss is 2.3000, ours 0.3900" in text


@pytest.mark.stress
@pytest.mark.parametrize("models", [1, 2])
def test_the_programs_of_scale_do_the_same(tmp_path, models):
    """Each trains a few batches of what it was asked for, and ends at about the same loss."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=1000, dtype=np.uint8)
    images = (rng.random((1000, 28, 28)) * 25 * labels[:, None, None]).astype(np.uint8)
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "x.npz", **arrays, test_images=images[:50], test_labels=labels[:50])
    job = {"hidden": (32, 16), "batch": 8, "epochs": 20, "images": 1000, "models": models}
    losses = {}
    for name in ("ours_scan", "flax_linen", "numpy_openblas", "torch_compile"):
        if name == "torch_compile" and not importlib.util.find_spec("torch"):
            continue
        command = [sys.executable, ROOT / "scripts" / "peers" / f"{name}.py"]
        arguments = [tmp_path / "x.npz", "cpu", json.dumps(job)]
        out = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        losses[name] = json.loads(out.stdout.splitlines()[-1])["loss"]
    assert losses["ours_scan"] < 2.1  # it has learned
    for name, loss in losses.items():
        assert loss == pytest.approx(losses["ours_scan"], rel=0.1), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--only numpi", ["numpi", "numpy"]),
        ("--runs 0", ["--runs", "at least 1"]),
        ("--profile --chart x.png", ["--chart", "--profile"]),
        ("--scale --only ours", ["--scale", "--only"]),
        ("--peers some", ["--peers", "some"]),
        ("--out /no/such/directory/x.json", ["/no/such/directory"]),
    ],
)
def test_wrong_usage(script, options, words):
    code, _, stderr = script("benchmark.py", *options.split())
    assert code == 2
    for word in words:
        assert word in stderr
