"""Whatever the terminal, the interpreter and the environment are: the work is done, or one line."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, TRAIN, refused

pytestmark = pytest.mark.slow
OPTIONS = "--dataset synthetic --epochs 1 --batch-size 500"
STARTS = {
    "closed": f"{{}} {TRAIN} {{}} <&- >&- 2>&-",
    "safe path": f"{{}} -P {TRAIN} {{}}",
    "isolated": f"{{}} -I {TRAIN} {{}}",
    "module": "{} -m scripts.train {}",
    "child of JAX": f"{{0}} -c 'import jax, os; os.system(\"{{0}} {TRAIN} {{1}}\")'",
}


@pytest.mark.parametrize("how", STARTS)
def test_ways_to_start(tmp_path, how):
    environment = {name: x for name, x in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    # An encoding that lacks a character of the directory, and a flag that stops compiling.
    environment |= {"PYTHONIOENCODING": "ascii", "JAX_DISABLE_JIT": "1"}
    options = f"{OPTIONS} --out {tmp_path}/Zoë"
    command = STARTS[how].format(sys.executable, options)
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "Zoë" / "weights.safetensors").exists()


def test_a_flag_of_jax_with_a_wrong_value():
    environment = os.environ | {"JAX_ENABLE_X64": "maybe"}
    done = subprocess.run([sys.executable, TRAIN], env=environment, capture_output=True, text=True)
    refused((done.returncode, done.stdout, done.stderr), 1, "JAX_ENABLE_X64")
