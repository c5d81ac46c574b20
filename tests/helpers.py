"""What several test modules share: where the scripts are, a short run, and what a run ends in."""

import functools
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmnist import Dataset, cross_entropy, datasets, preprocess
from jaxmnist.datasets import synthetic

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "scripts" / "train.py"
SWEEP = ROOT / "scripts" / "sweep.py"

# Seconds after which a test is given up. None waits for so long unless something hangs: how fast
# the machine is must make no difference.
PATIENCE = 900


def finish(command, **options) -> str:
    """Run a program to its end; what it printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr.strip()}")
    return done.stdout


def epoch_lines(stdout: str) -> list[str]:
    """The lines about epochs."""
    return [line for line in stdout.splitlines() if "Training loss: " in line]


def ending(out: Path) -> tuple[bytes, bytes, bytes, dict[str, bytes]]:
    """What must be equal to the bit: weights, metrics, losses of the steps, the whole state."""
    newest = load_file(max(out.glob("checkpoint-*.safetensors")))
    state = {name: array.tobytes() for name, array in newest.items()}
    names = ("weights.safetensors", "metrics.jsonl", "steps.jsonl")
    weights, metrics, steps = ((out / name).read_bytes() for name in names)
    return weights, metrics, steps, state


def run_script(name: str, *options: object) -> int:
    """Run a script in this process as `python scripts/NAME OPTIONS` does; its exit code."""
    path = ROOT / "scripts" / name
    precision = jax.config.jax_default_matmul_precision  # a script sets it for its process
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, options)])
        patch.setattr(sys, "path", sys.path[:])  # a script puts its directory first
        try:
            # As a user's process is, whatever the tests' own is.
            usual = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
            with usual[0], usual[1], pytest.raises(SystemExit) as stop:
                runpy.run_path(str(path), run_name="__main__")
        finally:
            jax.config.update("jax_default_matmul_precision", precision)
            signal.signal(signal.SIGINT, handler)
            for helper in path.parent.glob("_*.py"):  # another directory's may be others
                sys.modules.pop(helper.stem, None)
    return stop.value.code


@functools.cache
def _digits() -> tuple[Dataset, Dataset]:
    labels = np.random.default_rng(0).permutation(np.arange(1500, dtype=np.int32) % 10)
    images = np.asarray(jax.jit(synthetic.draw_digits)(jax.random.key(0), labels))
    return Dataset(images[:1000], labels[:1000]), Dataset(images[1000:], labels[1000:])


def use_few_digits(patch: pytest.MonkeyPatch) -> tuple[Dataset, Dataset]:
    """Let the synthetic digits be 1,000 to train with and 500 to test with, as often each."""
    for module in (datasets, synthetic):
        patch.setattr(module, "load_synthetic", lambda seed=0, say=None: _digits())
    return _digits()


def refused(result: tuple[int, str, str], code: int, *words: str) -> None:
    """The script has ended with this code and one line on stderr, in which these words are."""
    assert result[0] == code, result
    (line,) = result[2].splitlines()
    assert ": error: " in line
    for word in words:
        assert word in line


def logits_by_hand(params, pixels):
    """An MLP's logits for rows of transformed pixels, in float64."""
    layers, x = params["params"], np.float64(pixels)
    for k in range(len(layers)):
        weight, bias = (np.float64(layers[f"linear_{k}"][part]) for part in ("weight", "bias"))
        x = (np.maximum(x, 0) if k else x) @ weight.T + bias
    return x


def bright_rows(n: int) -> Dataset:
    """Random images that are told apart by one bright row each."""
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
    labels = np.arange(n, dtype=np.int32) % 10
    images[np.arange(n), labels] = 255
    return Dataset(images, labels)


def stateful(apply_fn):
    """An objective with dropout on the pixels, and their running mean, which is taken off them."""

    def objective(params, batch, *, key, model_state, where):
        images = preprocess(batch.images)
        rows = None if where is None else where[:, None]
        mean = 0.9 * model_state + 0.1 * jnp.mean(images, axis=0, where=rows)
        kept = jax.random.bernoulli(key, 0.8, images.shape)
        logits = apply_fn(params, jnp.where(kept, images - mean[None], 0))
        return cross_entropy(logits, batch.labels), {}, mean

    return objective


def assert_close(got, expected, rtol=1e-5):
    """Two trees, relative to the largest entry of each array, as rounding is."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=0))


def counting(fn):
    """The function, which counts in `traces` how often it is traced; its signature stays."""

    @functools.wraps(fn)
    def counted(*args, **kwargs):
        counted.traces += 1
        return fn(*args, **kwargs)

    counted.traces = 0
    return counted
