"""What a run trains: its data, its model and step, its first state, the orders of its epochs."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from jaxmnist import torch_compat
from jaxmnist.augment import handwriting
from jaxmnist.data import Dataset, epoch_order
from jaxmnist.datasets import Data
from jaxmnist.datasets.synthetic import add_synthetic
from jaxmnist.errors import UsageError
from jaxmnist.evaluation import classifier_metrics, evaluate
from jaxmnist.losses import cross_entropy, nll_loss
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.optimizers import make_optimizer
from jaxmnist.population import Run
from jaxmnist.runs.machine import check_memory
from jaxmnist.training import TrainState, init_state, make_train_step, train
from jaxmnist.types import AnyArray, Metrics, Optimizer, TrainStep
from jaxmnist.weights import load_weights

Loss = Literal["cross_entropy", "nll"]


def split(data: Data, validation: int, synthetic_digits: int) -> tuple[Dataset, dict[str, Dataset]]:
    """The images to train on, with synthetic digits added, and the test sets by name.

    The last `validation` of the training images are held out, as the test set "validation".
    """
    train, n = data.train, len(data.train.labels) - validation
    if n < 1:
        raise UsageError(f"--validation {validation} leaves none of {len(train.labels):,} images")
    held_out = {"validation": Dataset(train.images[n:], train.labels[n:])} if validation else {}
    train = Dataset(train.images[:n], train.labels[:n]) if validation else train
    return add_synthetic(train, synthetic_digits), {**held_out, "test": data.test}


def count_steps(n: int, batch_size: int, epochs: int) -> int:
    """The steps of an epoch; a UsageError for too many to count, or fewer images than a batch."""
    if batch_size > n:
        raise UsageError(f"--batch-size {batch_size} is above the {n:,} training images")
    steps = -(-n // batch_size)
    if epochs * steps >= 2**31:  # the state counts them in 32 bits
        raise UsageError(f"--epochs {epochs} of {steps} steps are 2**31 steps or more")
    return steps


def make_training(
    hidden: Sequence[int], loss: Loss, augment: float | jax.Array | None, tx: Optimizer
) -> tuple[MLP, TrainStep[TrainState], Callable[..., Any]]:
    """The model, its training step, and the function of its metrics for `evaluate`.

    Args:
        hidden: the width of each hidden layer.
        loss: cross-entropy of logits, or "nll" of the log-softmax that the model then ends in.
        augment: strength of `handwriting` on the training images, which may be traced; None for
            images as they are.
        tx: the optimizer.
    """
    loss_fn = nll_loss if loss == "nll" else cross_entropy
    model = MLP(tuple(hidden), log_probs=loss == "nll")
    changes = None if augment is None else partial(handwriting, strength=augment)
    objective = classifier_objective(model.apply, loss_fn, augment=changes)
    return model, make_train_step(objective, tx), classifier_metrics(model.apply, loss_fn)


class Start(NamedTuple):
    """What a run starts from."""

    shapes: TrainState  # of the first state, with shapes and dtypes for arrays
    make_state: Callable[[], TrainState]  # computes it
    # compiles `order(epoch)`, the indices of the epoch's examples; epochs count from 0
    make_order: Callable[[], Callable[[int], Int32[AnyArray, " n"]]]
    init: str | None  # sha256 of the initial parameters, if a file was named


def make_start(model: MLP, tx: Optimizer, n: int, options: Any) -> Start:
    """The first state, of `init_state`, and the orders of n examples, of `epoch_order`.

    Both come from `jax.random.key(options.seed)`. The parameters may be those of a file,
    `options.init`, or with the orders of a PyTorch script: see `_torch_start`.
    """
    seed, params, digest = np.uint32(options.seed), None, None

    def first_state(seed: Any) -> TrainState:  # the key is made inside: by itself it takes 50 ms
        return init_state(model, tx, jax.random.key(seed))

    traced = jax.jit(first_state).trace(seed)
    if options.torch_seed is not None:
        params, torch_order = _torch_start(model, n, options)
    if options.init is not None:
        params = load_weights(options.init)
        expected = jax.tree.map(np.shape, traced.out_info.params)
        if jax.tree.map(np.shape, params) != expected:
            raise UsageError(f"--init {options.init}: the weights have other sizes than --hidden")
        content = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(params))
        digest = hashlib.sha256(content).hexdigest()[:16]

    def make_state() -> TrainState:
        # This runs for 1 ms: XLA's full optimisation costs 0.6 s and gives equal bits.
        state = traced.lower().compile({"xla_backend_optimization_level": "2"})(seed)
        return state if params is None else state._replace(params=params, opt_state=tx.init(params))

    def make_order() -> Callable[[int], Any]:
        if options.torch_seed is not None:
            return torch_order
        ordered = jax.jit(lambda seed, epoch: epoch_order(jax.random.key(seed), epoch, n))
        program = ordered.lower(seed, np.int32(0)).compile()
        return lambda epoch: program(seed, np.int32(epoch))

    return Start(traced.out_info, make_state, make_order, digest)


def _torch_start(model: MLP, n: int, options: Any) -> tuple[Any, Callable[[int], Any]]:
    """The parameters and orders of a script that calls `torch.manual_seed(options.torch_seed)`.

    It makes the model and iterates over a DataLoader that shuffles (as before PyTorch 1.6 where
    `options.torch_order` is "legacy") and, with `options.torch_test_loader`, over one that does
    not. The stream goes on from epoch to epoch, so orders can be asked for in turn only.
    """
    generator = torch_compat.TorchGenerator(options.torch_seed)
    params = torch_compat.init_params(generator, (784, *model.hidden, model.classes))

    def orders() -> Iterator[Int32[np.ndarray, " n"]]:
        legacy = options.torch_order == "legacy"
        while True:
            yield torch_compat.loader_order(generator, n, legacy=legacy)
            if options.torch_test_loader:
                torch_compat.pass_in_order(generator)

    stream = enumerate(orders())
    return params, lambda epoch: next(order for number, order in stream if number == epoch)


def describe(model: MLP, shapes: TrainState, device: jax.Device) -> str:
    """The sizes of a model's layers and its parameters; a JaxmnistError where it does not fit."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((shapes, shapes.params)))
    check_memory(size, device, "training a model of this size")
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    sizes = map(str, (784, *model.hidden, model.classes))
    return f"{'-'.join(sizes)}, {count:,} parameters"


def make_run(options: Mapping[str, Any]) -> Run:
    """Train one model as scripts/train.py does: `run(member, data) -> scores`.

    Args:
        options: those of a training. A member has a "seed", and numbers that take their place.
    """

    def run(member: dict[str, Any], data: dict[str, Dataset]) -> Metrics:
        given, key = {**options, **member}, jax.random.key(member["seed"])
        steps = given["epochs"] * -(-len(data["train"].labels) // given["batch_size"])
        names = inspect.signature(make_optimizer).parameters.keys() & given.keys()
        tx = make_optimizer(**{name: given[name] for name in names}, steps=steps)
        augment = given["augment"] if options["augment"] else None
        model, train_step, metrics_fn = make_training(given["hidden"], given["loss"], augment, tx)

        def test(state: TrainState) -> Metrics:
            names = sorted(data.keys() - {"train"})
            return {name: evaluate(metrics_fn, state.params, data[name]) for name in names}

        state, sizes = init_state(model, tx, key), {n: given[n] for n in ("epochs", "batch_size")}
        state, metrics = train(train_step, state, data["train"], key, test=test, **sizes)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]
        return {**metrics, "finite": jnp.stack(finite).all()}

    return run
