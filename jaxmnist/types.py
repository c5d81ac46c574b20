"""The names that the signatures of several modules share."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import optax
from jaxtyping import Array, Integer

AnyArray: TypeAlias = Array | np.ndarray  # on a device or, as NumPy's, on the host
Params: TypeAlias = Any  # what is trained, a pytree: for Linen what `model.init` returns
Examples: TypeAlias = Any  # a dataset or a batch: a pytree of arrays, examples on the first axis
Order: TypeAlias = Integer[AnyArray, " n"]  # the indices of examples, in the order of a visit
Metrics: TypeAlias = dict[str, Array]
Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps
ApplyFn: TypeAlias = Callable[[Params, AnyArray], Any]  # (params, images) -> logits
LossFn: TypeAlias = Callable[[Any, Any], Any]  # (logits, labels) -> a number per example
Transform: TypeAlias = Callable[[Any], AnyArray]  # images -> what the model takes
State = TypeVar("State")  # a TrainState, or what your own step carries
TrainStep: TypeAlias = Callable[..., tuple[State, Any]]  # (state, batch, [where])
Remainder: TypeAlias = Literal["pad", "short", "drop"] | None
