"""Training an MLP on MNIST as one pure, jit-compiled JAX function.

Everything that computes is a pure function of arrays, to be jitted, vmapped, differentiated and
scanned by you; importing it starts no backend and sets no flag.
"""

from jaxmnist.checks import check_finite
from jaxmnist.data import Dataset, batches, epoch_order
from jaxmnist.datasets.mnist import load_mnist
from jaxmnist.errors import JaxmnistError
from jaxmnist.evaluation import classifier_metrics, evaluate
from jaxmnist.losses import cross_entropy, nll_loss
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.training import TrainState, init_state, make_train_epoch, make_train_step, train
from jaxmnist.transforms import preprocess

__version__ = "0.3.0"
__all__ = ["MLP", "Dataset", "JaxmnistError", "TrainState", "batches", "check_finite"]
__all__ += ["classifier_metrics", "classifier_objective", "cross_entropy", "epoch_order"]
__all__ += ["evaluate", "init_state", "load_mnist", "make_train_epoch", "make_train_step"]
__all__ += ["nll_loss", "preprocess", "train"]
