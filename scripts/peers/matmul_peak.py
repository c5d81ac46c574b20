"""The most GFLOP/s that a float32 matmul reaches here, in NumPy and in XLA, and on which device."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def gflops(matmul: Callable[[Any, Any], Any], a: Any) -> float:
    """The best of five products of `a` with itself, after one that warms up."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(matmul(a, a))
        seconds.append(time.perf_counter() - start)
    return 2 * len(a) ** 3 / min(seconds[1:]) / 1e9


device = jax.devices()[0]
ones = np.ones((2048, 2048), np.float32)
result = {
    "platform": device.platform,
    "device": device.device_kind,
    "numpy": gflops(np.matmul, ones),
    "xla": gflops(jax.jit(jnp.matmul), jnp.ones((2048 if device.platform == "cpu" else 8192,) * 2)),
}
print(json.dumps(result))
