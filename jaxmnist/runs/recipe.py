"""What a training or a sweep trains, from its options: the model, a step, what is evaluated."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax

from jaxmnist.augment import handwriting
from jaxmnist.evaluation import classifier_metrics
from jaxmnist.losses import cross_entropy, nll_loss
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.training import TrainStep, make_train_step
from jaxmnist.types import Metrics, Optimizer


def make_training(
    hidden: Sequence[int],
    loss: Literal["cross_entropy", "nll"],
    augment: float | jax.Array | None,
    tx: Optimizer,
) -> tuple[MLP, TrainStep, Callable[..., Metrics]]:
    """The model, its training step, and what `evaluate` measures.

    Args:
        hidden: the width of each hidden layer.
        loss: cross-entropy on logits, or "nll" on the log-softmax that the model then ends in.
        augment: strength of `handwriting` on the training images, which may be traced; with it, and
            only then, the step needs a key in its state.
        tx: the optimizer.
    """
    loss_fn = nll_loss if loss == "nll" else cross_entropy
    model = MLP(tuple(hidden), log_probs=loss == "nll")
    changes = partial(handwriting, strength=augment) if augment is not None else None
    train_step = make_train_step(classifier_objective(model.apply, loss_fn, augment=changes), tx)
    return model, train_step, classifier_metrics(model.apply, loss_fn)
