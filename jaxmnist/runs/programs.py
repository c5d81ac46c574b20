"""What the scripts train with: the data, the devices, the optimizer, the compiled programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmnist.errors import UsageError

if TYPE_CHECKING:  # the functions import what they use, so that --help does not wait for JAX
    import jax
    import optax
    from jax.sharding import Mesh

    from jaxmnist import Dataset, TrainState
    from jaxmnist.datasets.mnist import Mnist

WARNING = (
    "WARNING: this is NOT MNIST but digits drawn by a program: "
    "MNIST is neither on this machine nor can it be downloaded now."
)


class Run(NamedTuple):
    """What a run consists of. Its epochs are trained in pieces: `state, metrics = piece(state)`."""

    state: TrainState
    piece: Callable[[int, slice], Callable[[TrainState], Any]]  # of an epoch: these of its images
    evaluate: Callable[[Any], Any]  # params -> metrics
    place: Callable[[Any], Any]  # arrays -> the same arrays where the run needs them


def build(
    config: Any, data: Mnist, device: jax.Device, mesh: Mesh | None, sizes: Collection[int]
) -> Run:
    """Make the first state, and compile the programs for one device or for a mesh.

    `sizes` are the numbers of images that will be trained on in one piece.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxmnist import (
        MLP,
        TrainState,
        cross_entropy,
        evaluate,
        make_train_epoch,
        make_train_step,
        nll_loss,
        parallel,
    )

    model = MLP(config.hidden, log_probs=config.loss == "nll")
    loss_fn = nll_loss if config.loss == "nll" else cross_entropy
    tx = make_optimizer(config)
    train_step = make_train_step(model.apply, tx, loss_fn)

    def place(tree: Any) -> Any:
        return jax.device_put(tree, device) if mesh is None else parallel.replicate(tree, mesh)

    test = place(data.test)
    if mesh is None:
        train = place(data.train)
        train_epoch: Callable[..., Any] = make_train_epoch(train_step, config.batch_size)
    else:
        train_epoch = parallel.make_shared_epoch(train_step, mesh)

    def inputs_of(order: Any) -> tuple[Any, ...]:
        if mesh is None:
            return train, order
        return (parallel.share_epoch(data.train, order, config.batch_size, mesh),)

    def run_test(params: Any, test: Dataset) -> Any:
        return evaluate(model.apply, params, test, loss_fn)

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=test.labels.sharding),
        first_shapes(config),
    )
    # Nobody else holds the state, so the next one may take its memory.
    epoch_program = jax.jit(train_epoch, donate_argnums=0)

    def compile_for(size: int) -> Any:
        order = np.arange(size, dtype=np.int32)
        return epoch_program.lower(shapes, *inputs_of(order)).compile()

    n = len(data.train.labels)
    with ThreadPoolExecutor() as pool:  # XLA compiles on one core; there are others
        compiling = {size: pool.submit(compile_for, size) for size in sizes}
        testing = pool.submit(lambda: jax.jit(run_test).lower(shapes.params, test).compile())
        params, orders = draw(config, model, shapes.params, n)
        state = place(TrainState(jnp.zeros((), jnp.int32), params, tx.init(params)))
        programs = {size: program.result() for size, program in compiling.items()}
        test_program = testing.result()

    def piece(epoch: int, part: slice) -> Callable[[TrainState], Any]:
        order = orders(epoch)
        whole = part == slice(0, n)  # stays on the device
        inputs = inputs_of(order if whole else np.asarray(order)[part])
        return lambda state: programs[part.stop - part.start](state, *inputs)

    return Run(state, piece, lambda params: test_program(params, test), place)


def first_shapes(config: Any) -> Any:
    """The first state with shapes and dtypes for arrays."""
    import jax

    from jaxmnist import MLP, init_state

    model = MLP(config.hidden, log_probs=config.loss == "nll")
    return jax.eval_shape(lambda: init_state(jax.random.key(0), model, make_optimizer(config)))


def draw(config: Any, model: Any, shapes: Any, n: int) -> tuple[Any, Callable[[int], Any]]:
    """What is random in a run: the initial parameters, and the order of epoch 0, 1, 2, ...

    Both come from JAX's key for `--seed`, or from PyTorch's stream for `--torch-seed`; parameters
    of `--init` take the place of drawn ones and must have the same `shapes`.
    """
    import jax
    import numpy as np

    from jaxmnist import DataError, epoch_order, torch_compat

    if config.torch_seed is None:
        seed = np.uint32(
            config.seed
        )  # the key is made inside the programs: by itself it takes 50 ms

        def init(seed: Any) -> Any:
            return model.init(jax.random.key(seed), np.zeros((1, 784), np.float32))

        if not config.init:
            # XLA's full optimisation of what runs for 1 ms takes it 0.6 s longer, for equal bits.
            lowered = jax.jit(init).lower(seed)
            params = lowered.compile(compiler_options={"xla_backend_optimization_level": "2"})(seed)

        def order_of(seed: Any, epoch: Any) -> Any:
            return epoch_order(jax.random.key(seed), epoch, n)

        make_order = jax.jit(order_of).lower(seed, 0).compile()

        @lru_cache(maxsize=1)  # the pieces of an epoch share it
        def orders(epoch: int) -> Any:
            return make_order(seed, epoch)

    else:
        generator = torch_compat.TorchGenerator(config.torch_seed)
        # Drawn even where --init replaces them: the orders come after them in the stream.
        params = torch_compat.init_params(generator, (784, *config.hidden, 10))

        legacy, drawn = config.torch_order == "legacy", count()

        @lru_cache(maxsize=1)
        def orders(epoch: int) -> Any:  # a stream: one that is resumed passes what was drawn
            while next(drawn) < epoch:
                torch_compat.loader_order(generator, n, legacy=legacy)
            return torch_compat.loader_order(generator, n, legacy=legacy)

    if config.init:
        params = torch_compat.load_weights(config.init)
        found, expected = ([x.shape for x in jax.tree.leaves(tree)] for tree in (params, shapes))
        if found != expected:
            raise DataError(f"{config.init}: weights of other sizes than --hidden {config.hidden}")
    return params, orders


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """The optax optimizer that the options name."""
    import optax

    if config.optimizer == "sgd":
        return optax.sgd(config.learning_rate, momentum=config.momentum or None)
    return getattr(optax, config.optimizer)(config.learning_rate)


def find_devices(config: Any) -> tuple[jax.Device, Mesh | None]:
    """A device of the kind to train on; the mesh of all of them if there are to be several."""
    import jax

    from jaxmnist import JaxmnistError, parallel

    if config.device == "cpu":  # does not wake an accelerator that is not wanted
        jax.config.update("jax_platforms", "cpu")
    try:
        device = jax.local_devices(backend=None if config.device == "auto" else config.device)[0]
    except RuntimeError as error:
        raise JaxmnistError(
            f"--device {config.device}: JAX finds no such device, only {jax.default_backend()}; "
            "the extras jaxmnist[cuda] and jaxmnist[tpu] install the support for others"
        ) from error
    if config.devices == 1 and not config.distributed:
        return device, None
    every = config.distributed or config.devices == "all"
    mesh = parallel.make_mesh(None if every else config.devices, device.platform)
    if config.batch_size < mesh.size:
        raise UsageError(f"--batch-size {config.batch_size} is below the {mesh.size} devices")
    return device, mesh if mesh.size > 1 else None


def load(config: Any) -> tuple[Mnist, bool]:
    """The data, and whether it is drawn digits standing in for an MNIST that cannot be had."""
    from jaxmnist import DataNotFoundError
    from jaxmnist.datasets.mnist import Mnist, find_mnist
    from jaxmnist.datasets.synthetic import load_synthetic

    if config.dataset != "synthetic":
        try:
            found = find_mnist(config.data_dir, progress=sys.stderr.isatty())
            return found._replace(source=f"MNIST from {found.source}"), False
        except DataNotFoundError as error:
            named = config.data_dir or os.environ.get("JAXMNIST_DATA_DIR")
            if config.dataset == "mnist" or named:
                raise
            print(f"{WARNING}\n{error}", file=sys.stderr)
    elif config.data_dir:
        raise UsageError("--data-dir is MNIST's; --dataset synthetic reads no files")
    train, test = load_synthetic(config.seed)
    source = f"drawn digits, seed {config.seed}: not MNIST"
    return Mnist(train, test, source), config.dataset == "auto"
