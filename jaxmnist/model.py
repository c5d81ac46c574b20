"""The notebook's model: Linear, ReLU, Linear, ReLU, Linear and, if asked for, LogSoftmax."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmnist.transforms import flatten
from jaxmnist.types import AnyArray


class MLP(nn.Module):
    """A multilayer perceptron that turns images into one score a class.

    `MLP().init(key, images)` gives the parameters, a plain dict, and `MLP().apply(params, images)`
    the scores. Parameters start as PyTorch's `nn.Linear` starts them: kernels and biases uniform in
    ±1/sqrt(inputs) (torch/nn/modules/linear.py, `reset_parameters`).

    Attributes:
        hidden: the width of each hidden layer.
        classes: how many scores there are.
        log_probs: end in a log-softmax, for `nll_loss`; otherwise the scores are logits, for
            `cross_entropy`.
        dtype: what the layers compute in, for instance `jnp.bfloat16`; the parameters stay float32,
            and so do the scores, since a loss in bfloat16 has two digits.
    """

    hidden: Sequence[int] = (128, 64)
    classes: int = 10
    log_probs: bool = False
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Float[AnyArray, "n *shape"]) -> Float[Array, "n classes"]:
        """The scores of each image; images of any shape are flattened first."""
        x = flatten(images)
        for width in self.hidden:
            x = nn.relu(_linear(width, x.shape[-1], self.dtype)(x))
        logits = _linear(self.classes, x.shape[-1], self.dtype)(x)
        if self.dtype is not None:
            logits = logits.astype(jnp.float32)
        return jax.nn.log_softmax(logits) if self.log_probs else logits


def _linear(features: int, inputs: int, dtype: jax.typing.DTypeLike | None) -> nn.Dense:
    bound = inputs**-0.5
    uniform = nn.initializers.uniform(scale=2 * bound)

    def symmetric(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
        return uniform(key, shape, dtype) - bound

    return nn.Dense(features, dtype=dtype, kernel_init=symmetric, bias_init=symmetric)
