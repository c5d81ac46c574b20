"""Where data comes from: MNIST from disk, cache or network, and synthetic digits."""

from jaxmnist.datasets.mnist import Data, load_data, load_mnist
from jaxmnist.datasets.synthetic import load_synthetic

__all__ = ["Data", "load_data", "load_mnist", "load_synthetic"]
