"""The words that the signatures of several modules share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, PyTree

AnyArray = Array | np.ndarray  # on a device or, as NumPy's, on the host
Params = PyTree[Any]  # a model's parameters: for Linen what `model.init` returns, a plain dict
Metrics = dict[str, Array]
ApplyFn = Callable[[Params, Array], Array]  # (params, images) -> logits or log-probabilities
Optimizer = optax.GradientTransformation | optax.MultiSteps
LossFn = Callable[..., Any]  # (logits, labels, [where=]) -> loss or (loss, metrics)
