"""What is random in a run: the initial parameters, and the order of each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from jaxmnist import torch_compat
from jaxmnist.data import epoch_order
from jaxmnist.errors import DataError
from jaxmnist.model import MLP
from jaxmnist.types import Model
from jaxmnist.weights import load_weights

Item = TypeVar("Item")
Orders = Iterator[tuple[int, Any]]  # an epoch's number, from 0, and the int32 indices of its order


def init_params(model: Model, seed: int) -> Any:
    """The initial parameters for `jax.random.key(seed)`, as `init_state` makes them."""

    def init(seed: Any) -> Any:  # the key is made inside: by itself it takes 50 ms
        return model.init(jax.random.key(seed), np.zeros((1, 784), np.float32))

    lowered = jax.jit(init).lower(np.uint32(seed))
    # XLA's full optimisation of what runs for 1 ms takes it 0.6 s longer, for equal bits.
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": "2"})
    return compiled(np.uint32(seed))


def first_params_and_orders(
    model: MLP,
    n: int,
    epochs: range,
    seed: int,
    torch_seed: int | None = None,
    torch_order: Literal["modern", "legacy"] = "modern",
    torch_test_loader: bool = False,
) -> tuple[Any, Orders]:
    """Both from JAX's key for `seed`, or from PyTorch's stream after `manual_seed(torch_seed)`."""
    if torch_seed is None:
        return init_params(model, seed), key_orders(seed, n, epochs)
    generator = torch_compat.TorchGenerator(torch_seed)
    params = torch_compat.init_params(generator, (784, *model.hidden, model.classes))
    legacy = torch_order == "legacy"
    return params, torch_orders(generator, n, epochs, legacy=legacy, tests=torch_test_loader)


def load_params(path: Path, shapes: Any) -> Any:
    """The parameters in a file; a DataError where they have not these shapes."""
    params = load_weights(path)
    found, expected = ([x.shape for x in jax.tree.leaves(tree)] for tree in (params, shapes))
    if found != expected:
        raise DataError(f"{path}: the weights have other sizes than --hidden asks for")
    return params


def key_orders(seed: int, n: int, epochs: range) -> Orders:
    """The orders of n examples in these epochs, by `epoch_order` for `jax.random.key(seed)`."""

    def order_of(seed: Any, epoch: Any) -> Any:
        return epoch_order(jax.random.key(seed), epoch, n)

    make_order = jax.jit(order_of).lower(np.uint32(seed), np.int32(0)).compile()
    return ((epoch, make_order(np.uint32(seed), np.int32(epoch))) for epoch in epochs)


def torch_orders(
    generator: torch_compat.TorchGenerator,
    n: int,
    epochs: range,
    *,
    legacy: bool = False,
    tests: bool = False,
) -> Orders:
    """The orders of these epochs that PyTorch's DataLoader takes from this stream.

    With `tests` the script also iterates over a test loader, not shuffled, after each epoch.
    """
    for epoch in range(epochs.stop):
        order = torch_compat.loader_order(generator, n, legacy=legacy)
        if tests:
            torch_compat.pass_in_order(generator)
        if epoch in epochs:
            yield epoch, order


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the next one is made in a thread while the caller works with this one."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(next, items, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
