"""The notebook's transforms as pure functions: ToTensor, Normalize((0.5,), (0.5,)), flattening.

They are elementwise or a reshape, so they run inside the compiled step, on the uint8 pixels that
lie on the device: nothing is transformed ahead of time and nothing is stored twice. NumPy arrays
are transformed by NumPy, on the host, with the same result.
"""

import math

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from jaxmnist.checks import check_pixels
from jaxmnist.types import AnyArray


def to_tensor(images: UInt8[AnyArray, "*shape"]) -> Float32[AnyArray, "*shape"]:
    """Grey levels 0..255 as float32 in [0, 1]: torchvision's `ToTensor`, bit for bit.

    The channel axis that ToTensor adds carries no information for grey images and is left out.

    Raises:
        TypeError: the images are not uint8 (floats would be scaled a second time).

    >>> to_tensor(np.array([0, 51, 255], np.uint8))
    array([0. , 0.2, 1. ], dtype=float32)
    """
    if images.dtype != np.uint8:
        raise TypeError(f"to_tensor needs uint8 pixels, not {images.dtype}: scaled already?")
    grey = images.astype(np.float32)
    # grey / 255, since 1/255 = 1/256 + 1/(256 * 255). XLA compiles a division by a constant to a
    # multiplication by its reciprocal, which is off in the last bit for some grey levels; here the
    # first product is exact, so the sum is rounded once, to the bit that the division gives.
    return grey * (1 / 256) + grey * (1 / (256 * 255))


def normalize(
    images: Float[AnyArray, "*shape"], mean: float = 0.5, std: float = 0.5
) -> Float[AnyArray, "*shape"]:
    """`(images - mean) / std`, torchvision's `Normalize`: the notebook's 0.5, 0.5 gives [-1, 1]."""
    return (images - mean) / std


def flatten(images: Shaped[AnyArray, "n *shape"]) -> Shaped[AnyArray, "n size"]:
    """One row an image: the notebook's `images.view(images.shape[0], -1)`."""
    return images.reshape(images.shape[0], math.prod(images.shape[1:]))


def preprocess(images: Shaped[AnyArray, "n *shape"]) -> Float[AnyArray, "n *features"]:
    """What the training step does to a batch's images before it calls the model.

    uint8 pixels become the rows of floats that the notebook feeds its model, `[n, 784]`. Floats are
    taken to be transformed already and pass as they are, whatever their shape.

    Raises:
        TypeError: the images are other integers.
        ValueError: floats that reach beyond 32 are unscaled grey levels; in a
            compiled program they give NaN.

    >>> preprocess(np.array([[[0, 255]]], np.uint8))
    array([[-1.,  1.]], dtype=float32)
    """
    if images.dtype == np.uint8:
        return flatten(normalize(to_tensor(images)))
    return check_pixels(images)
