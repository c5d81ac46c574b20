"""Whatever the terminal, the interpreter and the environment are: the work is done, or one line."""

import contextlib
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, TRAIN, refused

OPTIONS = "--dataset synthetic --epochs 1 --batch-size 500"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    """Field case F5: also, no file of the run is taken for one of the standard streams."""
    out = tmp_path / "out"
    done = shell(f"{sys.executable} {TRAIN} {OPTIONS} --out {out} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "weights.safetensors").exists()
    help_shown = shell(f"{sys.executable} {TRAIN} --help {closed}")
    assert (help_shown.returncode, help_shown.stderr) == (0, "")
    assert shell(f"{sys.executable} {TRAIN} --epochs 0 {closed}").returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_device(tmp_path):
    """Field case F39: the run goes on, and it is told that its output is lost."""
    done = shell(f"{sys.executable} {TRAIN} {OPTIONS} --out {tmp_path / 'out'} > /dev/full")
    expected = "Warning: the output is lost: No space left on device; continuing\n"
    assert (done.returncode, done.stderr) == (0, expected)
    assert (tmp_path / "out" / "weights.safetensors").exists()
    assert shell(f"{sys.executable} {TRAIN} {OPTIONS} 2> /dev/full").returncode == 0
    assert shell(f"{sys.executable} {TRAIN} --help > /dev/full").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "cp1252:strict"},
    ],
    ids=str,
)
def test_an_encoding_that_lacks_a_character(tmp_path, environment):
    """Field case F4, here of a directory's name."""
    done = shell(f"{sys.executable} {TRAIN} {OPTIONS} --out '{tmp_path}/Zoë ✓'", **environment)
    if "UTF-8; use another" in done.stderr:  # the file system's encoding is ASCII too
        assert done.returncode == 2
        return
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "Zoë ✓" / "weights.safetensors").exists()
    refusal = shell(f"{sys.executable} {TRAIN} --loss 'é✓'", **environment)
    assert (refusal.returncode, len(refusal.stderr.splitlines())) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["-P scripts/{}.py", "-I scripts/{}.py", "-m scripts.{}"])
def test_ways_to_start(how):
    """Field case F6."""
    done = shell(f"{sys.executable} {how.format('train')} {OPTIONS}")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell(f"{sys.executable} {how.format('train')} --version").stdout[0].isdigit()


def test_python_safe_path():
    done = shell(f"{sys.executable} {TRAIN} --help", PYTHONSAFEPATH="1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("platforms", ["cuda", "gpu", "tpu", "nonsense"])
def test_an_accelerator_that_is_not_there(platforms):
    """Field case F7."""
    import jax

    if any(device.platform != "cpu" for device in jax.devices()):
        pytest.skip("there is one")
    done = shell(f"{sys.executable} {TRAIN} {OPTIONS}", JAX_PLATFORMS=platforms)
    refused((done.returncode, done.stdout, done.stderr), 1, f"JAX_PLATFORMS is {platforms}")


@pytest.mark.slow
def test_what_jax_has_exported_to_its_children(tmp_path):
    """Field case F27: no errors of XLA's, though a process that imported JAX is the parent."""
    options = [sys.executable, str(TRAIN), *OPTIONS.split()]
    code = f"import jax, subprocess, sys; sys.exit(subprocess.run({options}).returncode)"
    environment = {name: x for name, x in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_color():
    """A terminal gets colours in the help, but not where NO_COLOR is set."""
    import pty

    for environment, colored in (({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)):
        master, terminal = pty.openpty()
        with subprocess.Popen(
            [sys.executable, TRAIN, "--help"],
            stdout=terminal,
            env=os.environ | environment | {"TERM": "xterm"},
        ):
            os.close(terminal)
            shown = b""
            with contextlib.suppress(OSError):  # Linux's word for the end
                while piece := os.read(master, 100_000):
                    shown += piece
        os.close(master)
        assert (b"\x1b[" in shown) == colored
