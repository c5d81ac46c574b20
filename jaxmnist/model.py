"""The notebook's model: Linear, ReLU, Linear, ReLU, Linear and, if asked for, LogSoftmax."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmnist.checks import describe
from jaxmnist.transforms import flatten
from jaxmnist.types import AnyArray


def init_linear(key: PRNGKeyArray, inputs: int, features: int) -> dict[str, Array]:
    """A layer's "weight" `[features, inputs]` and "bias" `[features]`, uniform in ±1/sqrt(inputs).

    PyTorch's `nn.Linear` starts so (torch/nn/modules/linear.py, `reset_parameters`). Both come
    from one call of `uniform`, since each call takes XLA 50 ms to compile.
    """
    bound = inputs**-0.5
    draws = jax.random.uniform(key, (features, inputs + 1), jnp.float32, -bound, bound)
    return {"weight": draws[:, :-1], "bias": draws[:, -1]}


class MLP(nn.Module):
    """A multilayer perceptron that turns images into one logit per class.

    `MLP().init(key, images)` gives the parameters, a plain dict, and `MLP().apply(params, images)`
    the logits.

    A layer's "weight" is `[features, inputs]` as in PyTorch, where Flax's own `nn.Dense` has a
    "kernel" `[inputs, features]`: PyTorch's files fit as they are, and XLA makes faster code on
    CPUs. An optimizer that depends on the axes must be told, and weights are selected by their
    number of axes, not by the name "kernel":

    >>> from optax.contrib import MuonDimensionNumbers, muon
    >>> rows = MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    >>> weights = lambda params: jax.tree.map(lambda x: rows if x.ndim == 2 else None, params)
    >>> tx = muon(0.02, muon_weight_dimension_numbers=weights)

    Attributes:
        hidden: the width of each hidden layer.
        classes: how many logits there are.
        log_probs: end in a log-softmax, for `nll_loss`; without it the model gives logits, for
            `cross_entropy`.
        dtype: of the layers' computation, for instance `jnp.bfloat16`; parameters and logits stay
            float32, since a loss in bfloat16 has two digits.
    """

    hidden: Sequence[int] = (128, 64)
    classes: int = 10
    log_probs: bool = False
    dtype: jax.typing.DTypeLike | None = None

    if TYPE_CHECKING:  # by Linen's own type it might return a tuple, as a module with state does

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
            """The logits."""

    @nn.compact
    def __call__(self, images: Float[AnyArray, "n *shape"]) -> Float[Array, "n classes"]:
        """The logits of each image; images of any shape are flattened first."""
        made: Any = self.get_variable("params", "linear_0")
        if made and made["weight"].shape[1] != math.prod(getattr(images, "shape", ())[1:]):
            needed = f"images of {made['weight'].shape[1]} numbers"
            raise ValueError(f"the model takes {needed}, not {describe(images)}")
        x = flatten(images)
        for k, width in enumerate((*self.hidden, self.classes)):
            layer = self.param(f"linear_{k}", init_linear, x.shape[-1], width)
            x = nn.relu(x) if k else x
            x, weight, bias = promote_dtype(x, layer["weight"], layer["bias"], dtype=self.dtype)
            x = x @ weight.T + bias[None]
        logits = jnp.asarray(x, None if self.dtype is None else jnp.float32)
        return jax.nn.log_softmax(logits) if self.log_probs else logits
