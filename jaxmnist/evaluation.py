"""How good a model is, measured on every image of a dataset."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxmnist.data import Dataset
from jaxmnist.losses import check_shapes, cross_entropy
from jaxmnist.transforms import preprocess
from jaxmnist.types import ApplyFn, LossFn, Metrics, Params, Transform


def evaluate(
    apply_fn: ApplyFn,
    params: Params,
    dataset: Dataset,
    loss_fn: LossFn = cross_entropy,
    transform: Transform = preprocess,
    batch_size: int = 1000,
) -> Metrics:
    """Loss, accuracy and confusion matrix over the whole dataset, no image left out. Pure.

    Args:
        apply_fn: `apply_fn(params, images) -> logits [n, classes]`.
        params: the model's parameters.
        dataset: the images and labels.
        loss_fn: `loss_fn(logits, labels)`, called once, with all of them.
        transform: what happens to the images first.
        batch_size: how many images go through the model at once, which bounds the memory.

    Returns:
        "loss": what loss_fn gives, f32; "accuracy": the share of images whose largest logit is
        their label's, f32 in [0, 1]; "confusion": i32 [classes, classes], where row i, column j
        counts the images of class i that were taken for class j.
    """
    images, labels = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    whole = len(images) // batch_size * batch_size

    def apply(chunk: Shaped[Array, "n *shape"]) -> Float[Array, "n classes"]:
        logits = apply_fn(params, transform(chunk))
        check_shapes(logits, chunk.shape[:1])
        return logits

    logits = jax.lax.map(apply, images[:whole].reshape(-1, batch_size, *images.shape[1:]))
    logits = logits.reshape(whole, logits.shape[-1])
    if whole < len(images):
        logits = jnp.concatenate([logits, apply(images[whole:])])
    classes = logits.shape[-1]
    predictions = jnp.argmax(logits, axis=-1)
    result = loss_fn(logits, labels)
    return {
        "loss": result[0] if isinstance(result, tuple) else result,
        "accuracy": jnp.mean(predictions == labels),
        "confusion": jnp.zeros((classes, classes), jnp.int32).at[labels, predictions].add(1),
    }
