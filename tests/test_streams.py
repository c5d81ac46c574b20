"""Whatever the terminal, the interpreter and the environment are: the work is done, or one line."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, TRAIN

pytestmark = pytest.mark.slow
OPTIONS = "--dataset synthetic --epochs 1 --batch-size 500"
STARTS = {
    "closed": f"{{}} {TRAIN} {{}} <&- >&- 2>&-",
    "a reader that goes": f"{{}} {TRAIN} {{}} | head -1",
    "safe path": f"{{}} -P {TRAIN} {{}}",
    "isolated": f"{{}} -I {TRAIN} {{}}",
    "module": "{} -m scripts.train {}",
    "child of JAX": f"{{0}} -c 'import jax, os; os.system(\"{{0}} {TRAIN} {{1}}\")'",
}


@pytest.mark.parametrize("how", STARTS)
def test_ways_to_start(tmp_path, how):
    environment = {name: x for name, x in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"PYTHONIOENCODING": "ascii"}  # which lacks a character of the directory
    options = f"{OPTIONS} --out {tmp_path}/Zoë"
    command = STARTS[how].format(sys.executable, options)
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    if how != "a reader that goes":
        assert (tmp_path / "Zoë" / "weights.safetensors").exists()
