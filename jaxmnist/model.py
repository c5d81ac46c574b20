"""The notebook's model: Linear, ReLU, Linear, ReLU, Linear and, if asked for, LogSoftmax."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmnist.transforms import flatten
from jaxmnist.types import AnyArray


class Linear(nn.Module):
    """PyTorch's `nn.Linear`: `x @ weight.T + bias`, with its shapes and its initial values.

    Both start uniform in ±1/sqrt(inputs) (torch/nn/modules/linear.py, `reset_parameters`). The
    weight is `[features, inputs]`, the other way round than the kernel of Flax's `nn.Dense`. So
    files of PyTorch's fit without a transposition, and training on CPUs takes less time: the
    weight's gradient is `grads.T @ x`, of which XLA makes faster code than of `x.T @ grads`.

    Attributes:
        features: how many numbers come out.
        dtype: what is computed in; by default what the input and the float32 parameters promote to.
    """

    features: int
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n inputs"]) -> Float[Array, "n features"]:
        """The layer's outputs."""
        bound = x.shape[-1] ** -0.5

        def uniform(key: PRNGKeyArray, shape: Sequence[int]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        weight = self.param("weight", uniform, (self.features, x.shape[-1]))
        bias = self.param("bias", uniform, (self.features,))
        x, weight, bias = nn.dtypes.promote_dtype(x, weight, bias, dtype=self.dtype)
        return x @ weight.T + bias[None]


class MLP(nn.Module):
    """A multilayer perceptron that turns images into one score a class.

    `MLP().init(key, images)` gives the parameters, a plain dict, and `MLP().apply(params, images)`
    the scores.

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
            x = nn.relu(Linear(width, self.dtype)(x))
        logits = Linear(self.classes, self.dtype)(x)
        if self.dtype is not None:
            logits = logits.astype(jnp.float32)
        return jax.nn.log_softmax(logits) if self.log_probs else logits
