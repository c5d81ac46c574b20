"""Training an MLP on MNIST as one pure, jit-compiled JAX function.

Everything that computes is a pure function of arrays, to be jitted, vmapped, differentiated and
scanned by you; importing it starts no backend and sets no flag.
"""

from jaxmnist.data import Batch, Dataset, batches, epoch_order
from jaxmnist.datasets.mnist import load_mnist
from jaxmnist.errors import DataError, DataNotFoundError, JaxmnistError, NonFiniteLossError
from jaxmnist.evaluation import evaluate
from jaxmnist.losses import cross_entropy, nll_loss
from jaxmnist.model import MLP
from jaxmnist.training import (
    TrainState,
    check_finite,
    init_state,
    make_train_epoch,
    make_train_step,
    train,
)
from jaxmnist.transforms import flatten, normalize, preprocess, to_tensor

__all__ = [
    "MLP",
    "Batch",
    "DataError",
    "DataNotFoundError",
    "Dataset",
    "JaxmnistError",
    "NonFiniteLossError",
    "TrainState",
    "batches",
    "check_finite",
    "cross_entropy",
    "epoch_order",
    "evaluate",
    "flatten",
    "init_state",
    "load_mnist",
    "make_train_epoch",
    "make_train_step",
    "nll_loss",
    "normalize",
    "preprocess",
    "to_tensor",
    "train",
]
