"""The PyTorch notebook in JAX, cell by cell, each of its numbers beside our own."""
# Cells import where they first need something; and to mypy, any Linen `apply` may return a tuple.
# mypy: disable-error-code=arg-type

# %% [markdown]
# # Training neural networks, from PyTorch to JAX
#
# This is the PyTorch notebook again, in its order and under its cell numbers: what each cell did
# there, how JAX says it, and what both print. If you know the PyTorch one, read on from *Losses*
# and you will know JAX in ten minutes.
#
# Nothing here imports PyTorch, yet the weights, the batches and so the numbers are those that the
# notebook printed in 2019: its seed is known, and `TorchGenerator` draws from it what PyTorch drew.
#
# Open the file as a notebook in your editor or Jupyter, or run `python scripts/notebook.py`: it
# ends in a table of what was compared, and fails if a number is off. The next two cells are the
# machinery for that. Skip them.

# %% Machinery: the command line
import builtins
import contextlib
import dataclasses
import io
import re
import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Config:
    """The options."""

    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""
    markdown: bool = False
    """Print only the closing table."""


def main(config: Config) -> None:
    """Run the cells below; a number that is not the notebook's is an error."""
    with contextlib.redirect_stdout(io.StringIO() if config.markdown else sys.stdout):
        cells = runpy.run_path(__file__, {"data_dir": config.data_dir}, run_name="cells")
    if config.markdown:
        print(table(cells["rows"]))
    if off := [f"cell {row.cell} ({row.what})" for row in cells["rows"] if row.verdict == "OFF"]:
        from jaxmnist import JaxmnistError

        raise JaxmnistError(f"not what the notebook printed: {', '.join(off)}")


# %% Machinery: comparing
class Row(NamedTuple):
    """A line of the closing table."""

    cell: int
    what: str
    notebook: str
    jaxmnist: str
    difference: str
    verdict: str


rows: list[Row] = []


def show(cell: int, notebook: str, ours: object) -> None:
    """Print what the notebook's cell printed, and what ours does."""
    for name, output in (("notebook", notebook), ("jaxmnist", as_text(ours))):
        print(f"{f'[{cell}]':>4} {name}  " + output.strip().replace("\n", "\n" + " " * 15))


def compare(cell: int, what: str, notebook: str, ours: object, within: float = 0.0) -> None:
    """Show both, and note for the table whether they print the same numbers."""
    show(cell, notebook, ours)
    texts = [re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text) for text in (notebook, as_text(ours))]
    gaps = [abs(float(a) - float(b)) for a, b in zip(*texts, strict=False)]
    agree = len(texts[0]) == len(texts[1]) == len(gaps) > 0 and max(gaps) <= within
    verdict = (f"within {within:g}" if within else "same") if agree else "OFF"
    brief = [", ".join(text) if len(text) <= 4 else f"{len(text)} numbers" for text in texts]
    difference = f"{max(gaps):.1e}" if any(gaps) else "0"
    rows.append(Row(cell, what, brief[0], brief[1], difference, verdict))


def as_text(value: Any) -> str:
    """An array as PyTorch prints a tensor, four decimals and its corners; the rest as it is."""
    if not hasattr(value, "dtype"):
        return str(value)
    import numpy as np

    style: Any = {"precision": 4, "floatmode": "fixed", "suppress_small": True, "threshold": 1000}
    return f"Array({np.array2string(np.asarray(value), **style, separator=', ', prefix='Array(')})"


def table(rows: list[Row]) -> str:
    """The comparisons as a Markdown table."""
    lines = [Row._fields, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


if __name__ == "__main__":
    if hasattr(builtins, "__IPYTHON__"):  # Jupyter: the cells follow one by one
        data_dir = None  # where MNIST's files are, if not where the library looks for them
    else:
        from _cli import run

        run(main, Config, __doc__ or "")  # and not beyond: `main` runs the cells

# %% [markdown]
# ## Losses
#
# A network turns an image into ten scores. The *loss* says how wrong they are, the *gradient* of
# the loss says which way is up, and a step the other way makes the network a little better. All
# three ideas are the same in both libraries. What differs is where things live: in PyTorch, inside
# objects that change (a model holds its weights, a weight its gradient); in JAX, in values that you
# pass to pure functions and get back from them. Nearly every difference below is that one.

# %% Cell 1: import torch, nn, F, datasets, transforms
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist import (
    MLP,
    TrainState,
    batches,
    cross_entropy,
    flatten,
    load_mnist,
    make_train_epoch,
    make_train_step,
    nll_loss,
)
from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order, to_state_dict

# Unless told otherwise, JAX multiplies float32 matrices in TF32 on an NVIDIA GPU and in bfloat16 on
# a TPU: fast, and too coarse to compare.
jax.config.update("jax_default_matmul_precision", "highest")

# %% [markdown]
# The notebook's `transform` (ToTensor, then Normalize) is applied by `batches` to each batch, so
# the dataset itself stays as it came: uint8 pixels and int32 labels, two plain arrays.
#
# `trainloader` shuffles with a random stream hidden in `torch`; every draw anywhere moves it. Ours
# is a value with a name. In JAX of your own you would take `jax.random.key(0)` and split it, so
# that no draw can disturb another; here we need PyTorch's stream, draw by draw.

# %% Cell 2: trainset and trainloader
train, test = load_mnist(data_dir)
generator = TorchGenerator(165286645)  # torch.manual_seed(165286645)


def shuffled() -> np.ndarray:
    """The order of one pass over the notebook's `trainloader`."""
    return loader_order(generator, len(train.labels), legacy=True)


# %% [markdown]
# `nn.Sequential` is a description of the layers and a box of weights in one. In Flax they are two:
# `MLP()` describes (Linear, ReLU, Linear, ReLU, Linear) and holds nothing, `params` is a dict of
# arrays. Without a PyTorch run to repeat you would write
# `params = model.init(jax.random.key(0), images)`. A criterion needs no object at all:
# `nn.CrossEntropyLoss()` is the function `cross_entropy(logits, labels)`.

# %% Cells 3 and 4: a model, a criterion
model = MLP()
params = init_params(generator)

# %% Cells 5 and 6: a batch
images, labels = next(batches(train, order=shuffled()))
compare(5, "shape of a batch", "torch.Size([64, 1, 28, 28])", images.shape)
compare(6, "shape of an image", "torch.Size([1, 28, 28])", images[0].shape)

# %% Cells 7 and 8: images.view(images.shape[0], -1)
images = flatten(images)
compare(8, "shape of the flat batch", "torch.Size([64, 784])", images.shape)

# %% [markdown]
# `model(images)` becomes `model.apply(params, images)`: the weights come in by the front door. That
# is what will let us differentiate with respect to them, and have two sets of them at once.

# %% Cells 9 and 10: logits and their loss
logits = model.apply(params, images)
loss = cross_entropy(logits, labels)
compare(10, "cross-entropy", "tensor(2.2916, grad_fn=<NllLossBackward>)", loss)

# %% [markdown]
# ln 10 = 2.3026 is the loss of ten equal guesses: an untrained network knows nothing.
#
# The same loss in two steps: a log-softmax as the last layer, then the negative log likelihood.
# `exp` turns the log-probabilities into probabilities.

# %% Cells 11 to 15: log-softmax and the negative log likelihood
model = MLP(log_probs=True)
params = init_params(generator)

images, labels = next(batches(train, order=shuffled()))
compare(12, "shape of a batch", "torch.Size([64, 1, 28, 28])", images.shape)
images = flatten(images)
log_probs = model.apply(params, images)
loss = nll_loss(log_probs, labels)
compare(15, "negative log likelihood", "tensor(2.3023, grad_fn=<NllLossBackward>)", loss)

probabilities = jnp.exp(log_probs)
print("     the first three images' probabilities sum to", probabilities.sum(axis=1)[:3])
print("     cross-entropy of the same logits:", cross_entropy(MLP().apply(params, images), labels))

# %% [markdown]
# ## Gradient descent
#
# Autograd writes down every operation on a tensor that has `requires_grad=True` while your code
# runs, and `.backward()` walks through that record in reverse. In JAX arrays are only numbers:
# there is nothing to mark, because you do not differentiate an array but a *function*.

# %% Cells 16 and 17: x and y = x ** 2
x = jnp.asarray(generator.randn((2, 2)))
compare(
    16,
    "x = randn(2, 2)",
    """
tensor([[1.2447, 1.7893],
        [0.8041, 0.1500]], requires_grad=True)
""",
    x,
)
y = x**2
compare(
    17,
    "y = x ** 2",
    """
tensor([[1.5492, 3.2016],
        [0.6465, 0.0225]], grad_fn=<PowBackward0>)
""",
    y,
)

# %% [markdown]
# What takes the place of `grad_fn`, the record? JAX calls the function with a stand-in for `x`, a
# *tracer*, and notes what is done to it. The note is called a *jaxpr*, and you may read it. All of
# JAX works so: `jax.grad` differentiates what it traced, `jax.jit` compiles it, `jax.vmap` widens
# it to many inputs at once.


# %% Cells 18 and 19: y.grad_fn and z.grad_fn
def square(x: jax.Array) -> jax.Array:
    """The notebook's y."""
    return x**2


def mean_square(x: jax.Array) -> jax.Array:
    """The notebook's z."""
    return square(x).mean()


show(18, "<PowBackward0 at 0x7f9d495d2438>", jax.make_jaxpr(square)(x))
show(19, "<MeanBackward1 at 0x7f9d487424a8>", jax.make_jaxpr(mean_square)(x))

# %% [markdown]
# `x.grad` is None until `.backward()` has filled it in. Our `x` never gets a gradient: `jax.grad`
# turns the function into another function, and the gradient is what that one returns. z is the mean
# of four squares, so its gradient is 2x / 4 = x / 2.

# %% Cells 20 to 23: z.backward(), x.grad
show(21, "None", f"has x a .grad? {hasattr(x, 'grad')}")
gradient = jax.grad(mean_square)(x)
compare(
    23,
    "gradient of z, x / 2",
    """
tensor([[0.6223, 0.8947],
        [0.4020, 0.0750]])
""",
    gradient,
)
print("     off x / 2 by at most", jnp.abs(gradient - x / 2).max())

# %% [markdown]
# And `torch.no_grad()`? Where you don't ask for a gradient, none is prepared: calling
# `mean_square(x)` *is* the block without gradients. To hold a part of a function constant, as
# `.detach()` does, wrap it in `stop_gradient`: one factor of x * x held, half the gradient is left.


# %% In place of no_grad
def half_held(x: jax.Array) -> jax.Array:
    """`mean_square` with one of the two factors taken for a constant."""
    return (x * jax.lax.stop_gradient(x)).mean()


share = jax.grad(half_held)(x) / gradient
print("     share of the gradient that is left:", as_text(share.ravel()))

# %% [markdown]
# Now for the network. The function to differentiate is the loss as a function of the parameters:
# forward pass and criterion together. Its gradient has the shape of `params`, a dict of arrays.
# `to_state_dict` gives such a dict PyTorch's names and layout, so `model[0].weight.grad` is
# `to_state_dict(grads)["0.weight"]`.

# %% Cells 24 and 25: putting it all together
params = init_params(generator)
images, labels = next(batches(train, order=shuffled(), flatten=True))


def loss_fn(params: Any, images: np.ndarray, labels: np.ndarray) -> jax.Array:
    """The loss of a batch: what `loss.backward()` goes back through."""
    return nll_loss(model.apply(params, images), labels)


show(25, "Before backward pass:\n None", "a gradient that nobody asked for is nowhere")
earlier_grads = jax.grad(loss_fn)(params, images, labels)
compare(
    25,
    "gradient of the first weight",
    """
After backward pass:
 tensor([[-0.0014, -0.0014, -0.0014,  ..., -0.0014, -0.0014, -0.0014],
        [ 0.0003,  0.0003,  0.0003,  ...,  0.0003,  0.0003,  0.0003],
        [ 0.0000,  0.0000,  0.0000,  ...,  0.0000,  0.0000,  0.0000],
        ...,
        [-0.0012, -0.0012, -0.0012,  ..., -0.0012, -0.0012, -0.0012],
        [-0.0018, -0.0018, -0.0018,  ..., -0.0018, -0.0018, -0.0018],
        [ 0.0029,  0.0029,  0.0029,  ...,  0.0029,  0.0029,  0.0029]])
""",
    to_state_dict(earlier_grads)["0.weight"],
)

# %% [markdown]
# An optimizer in PyTorch holds on to the parameters and changes them. One of optax is a pair of
# pure functions: `init` makes its state (plain SGD needs none), `update` turns gradients into
# updates.

# %% Cell 26: optim.SGD(model.parameters(), lr=0.01)
tx = optax.sgd(0.01)
opt_state = tx.init(params)

# %% [markdown]
# PyTorch *adds* each gradient to `.grad`, so a training pass starts with `zero_grad()`; leave it
# out and you train on a sum. Here there is nothing to zero. A gradient is a value, and asking twice
# gives the same one twice. Where a sum is what you want, because a batch does not fit into memory
# at once, you write the sum.

# %% Cell 27: one pass through the network
compare(
    27,
    "initial weights",
    """
Initial weights -  Parameter containing:
tensor([[-0.0196, -0.0063,  0.0280,  ..., -0.0045, -0.0026, -0.0128],
        [ 0.0056,  0.0230, -0.0016,  ...,  0.0097, -0.0002, -0.0232],
        [ 0.0003,  0.0046, -0.0290,  ..., -0.0219,  0.0272, -0.0255],
        ...,
        [ 0.0313,  0.0219,  0.0083,  ..., -0.0112, -0.0125, -0.0222],
        [ 0.0109,  0.0193, -0.0083,  ...,  0.0302, -0.0084, -0.0076],
        [ 0.0195, -0.0014, -0.0175,  ...,  0.0230,  0.0278, -0.0125]],
       requires_grad=True)
""",
    to_state_dict(params)["0.weight"],
)

images, labels = next(batches(train, order=shuffled(), flatten=True))
grads = jax.grad(loss_fn)(params, images, labels)
compare(
    27,
    "gradient of the first weight",
    """
Gradient - tensor([[ 0.0014,  0.0014,  0.0014,  ...,  0.0014,  0.0014,  0.0014],
        [ 0.0010,  0.0010,  0.0010,  ...,  0.0010,  0.0010,  0.0010],
        [ 0.0000,  0.0000,  0.0000,  ...,  0.0000,  0.0000,  0.0000],
        ...,
        [ 0.0017,  0.0017,  0.0017,  ...,  0.0017,  0.0017,  0.0017],
        [-0.0015, -0.0015, -0.0015,  ..., -0.0015, -0.0015, -0.0015],
        [ 0.0025,  0.0025,  0.0025,  ...,  0.0025,  0.0025,  0.0025]])
""",
    to_state_dict(grads)["0.weight"],
)

again = jax.grad(loss_fn)(params, images, labels)
accumulated = jax.tree.map(jnp.add, earlier_grads, grads)
for name, tree in (("asked again", again), ("with cell 25's added", accumulated)):
    print(f"     {name}, the second row is {to_state_dict(tree)['0.weight'][1, 0]:.4f}, ...")

# %% [markdown]
# `optimizer.step()` changes the weights in place. Ours makes new ones, and the old are still there
# if you keep their name.

# %% Cell 28: optimizer.step()
updates, opt_state = tx.update(grads, opt_state, params)
params = optax.apply_updates(params, updates)
compare(
    28,
    "updated weights",
    """
Updated weights -  Parameter containing:
tensor([[-0.0196, -0.0063,  0.0280,  ..., -0.0045, -0.0026, -0.0128],
        [ 0.0056,  0.0230, -0.0016,  ...,  0.0097, -0.0003, -0.0232],
        [ 0.0003,  0.0046, -0.0290,  ..., -0.0219,  0.0272, -0.0255],
        ...,
        [ 0.0313,  0.0218,  0.0083,  ..., -0.0112, -0.0126, -0.0222],
        [ 0.0109,  0.0193, -0.0083,  ...,  0.0303, -0.0084, -0.0076],
        [ 0.0195, -0.0014, -0.0175,  ...,  0.0230,  0.0278, -0.0125]],
       requires_grad=True)
""",
    to_state_dict(params)["0.weight"],
)

# %% [markdown]
# ## Training for a few epochs
#
# `make_train_step` is cells 24 to 28 as one function, `(state, batch) -> (state, metrics)`, and
# `make_train_epoch` runs it over all 938 batches inside one compiled program: the images go to the
# device once, the shuffled order is an argument, and Python is not called again until the epoch is
# over. There lies the speed: pure functions can be compiled together.
#
# The losses agree to about 1e-4, not to the last digit: 4690 steps of float32 in another order of
# summation. Multiply the initial weights by 1 + 1e-7 * noise, train again, and the means move by as
# much as that.

# %% Cell 29: five epochs
notebook_losses = """
Training loss: 1.9604032466660684
Training loss: 0.9002394439187894
Training loss: 0.5352060402602529
Training loss: 0.43329321025912443
Training loss: 0.38745840537204923
"""
params = jax.tree.map(jnp.asarray, init_params(generator))
tx = optax.sgd(0.003)
state = TrainState(jnp.int32(0), params, tx.init(params))
train_epoch = jax.jit(make_train_epoch(make_train_step(model.apply, tx, nll_loss), batch_size=64))
train_on_device = jax.device_put(train)

for e, notebook_loss in enumerate(notebook_losses.strip().splitlines(), start=1):
    order = shuffled()
    state, metrics = train_epoch(state, train_on_device, order)
    # The notebook's mean: 938 losses, the last of only 32 images, added up as Python floats.
    epoch_loss = np.asarray(metrics["loss"], np.float64).mean()
    compare(29, f"loss of epoch {e}", notebook_loss, f"Training loss: {epoch_loss}", within=2e-4)

# %% [markdown]
# The last cell looks at `labels`, left over from the loop: the last batch of the last epoch.

# %% Cell 30: labels[0]
*_, (images, labels) = batches(train, order=order)
compare(30, "labels[0]", "tensor(6)", labels[0])

# %% [markdown]
# ## Everything that was compared
#
# A number printed with four decimals counts as the same only if all four are; the difference is the
# largest one between printed numbers.

# %% The table
print("\n" + table(rows))
