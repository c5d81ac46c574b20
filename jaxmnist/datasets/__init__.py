"""Where data comes from: MNIST from disk, cache or network, and digits drawn by a program."""

from jaxmnist.datasets.load import Data, load_data
from jaxmnist.datasets.mnist import load_mnist
from jaxmnist.datasets.synthetic import load_synthetic

__all__ = ["Data", "load_data", "load_mnist", "load_synthetic"]
