# %% [markdown]
# # Training neural networks, from PyTorch to JAX
#
# This is the PyTorch notebook again, in its order and under its cell numbers. Each cell begins with
# the notebook's own lines as comments; below them stands how JAX says it, and what both print. If
# you know the PyTorch one, read on from *Losses* and you will know JAX in ten minutes.
#
# Nothing here imports PyTorch, yet the weights, the batches and so the numbers are those that the
# notebook printed in 2019: its seed is known, and `TorchGenerator` gives the random numbers that
# PyTorch gave.
#
# `scripts/notebook.ipynb` shows it with its outputs. To run it, open that in Jupyter, or type
# `python scripts/notebook.py`, which ends in a table of what was compared, and fails if a number is
# off. `compare` puts what the notebook printed above what ours does, and notes it for the table; it
# is in `_notebook.py`, and the notebook's outputs are in `notebook_outputs.txt`.

# %%
from _notebook import Picture, compare, show, table

# %% [markdown]
# ## Losses
#
# A network turns an image into ten logits. The *loss* says how wrong they are, the *gradient* of
# the loss says which way is up, and a step the other way makes the network a little better. All
# three ideas are the same in both libraries. What differs is where things live: in PyTorch, inside
# objects that change (a model holds its weights, a weight its gradient); in JAX, in values that you
# pass to pure functions and get back from them. Nearly every difference below is that one.
#
# ### Cell 1: imports

# %%
# import torch
# from torch import nn
# import torch.nn.functional as F
# from torchvision import datasets, transforms
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist import MLP, Dataset, TrainState, batches, cross_entropy, load_mnist, nll_loss
from jaxmnist.plots import contact_sheet, loss_curves
from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order
from jaxmnist.transforms import flatten, normalize, to_tensor
from jaxmnist.weights import to_state_dict

# Unless told otherwise, JAX multiplies float32 matrices in TF32 on an NVIDIA GPU and in bfloat16 on
# a TPU: fast, and too coarse to compare.
jax.config.update("jax_default_matmul_precision", "highest")

# %% [markdown]
# ### Cell 2: the data
#
# A dataset is two plain arrays, uint8 pixels and int32 labels, and stays as it came: the transform
# is applied to each batch, in JAX within the compiled step.
#
# `trainloader` shuffles with a random stream hidden in `torch`; every random number anywhere moves
# it. Ours is a value with a name. In JAX of your own you would take `jax.random.key(0)` and split
# it, so that no use can disturb another; here we need PyTorch's stream, number by number.

# %%
# transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
# trainset = datasets.MNIST('~/.pytorch/MNIST_data/', download=True, train=True,
#                           transform=transform)
# trainloader = torch.utils.data.DataLoader(trainset, batch_size=64, shuffle=True)
train, test = load_mnist()
generator = TorchGenerator(165286645)  # torch.manual_seed(165286645)


def shuffled() -> np.ndarray:
    """The order of one pass over the notebook's `trainloader`."""
    return loader_order(generator, len(train.labels), legacy=True)


def next_batch() -> Dataset:
    """`next(iter(trainloader))`: the first 64 images of a new pass, transformed."""
    images, labels = next(batches(train, order=shuffled()))
    return Dataset(normalize(to_tensor(images[:, None])), labels)  # ToTensor adds the channel


# %% [markdown]
# ### Cells 3 and 4: a model, a criterion
#
# `nn.Sequential` is a description of the layers and a box of weights in one. In Flax they are two:
# `MLP()` describes (Linear, ReLU, Linear, ReLU, Linear) and holds nothing, `params` is a dict of
# arrays. Without a PyTorch run to repeat you would write
# `params = model.init(jax.random.key(0), images)`. A criterion needs no object at all:
# `cross_entropy(logits, labels)` is a function. It gives the loss of each image, and you take the
# mean yourself.

# %%
# model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
#                       nn.Linear(64, 10))
# criterion = nn.CrossEntropyLoss()
model = MLP()
params = init_params(generator)

# %% [markdown]
# ### Cells 5 and 6: a batch

# %%
# images, labels = next(iter(trainloader))
# print(images.shape)
# images[0].shape
images, labels = next_batch()
compare(5, "shape of a batch", images.shape)

# %%
compare(6, "shape of an image", images[0].shape)

# %%
pixels = np.asarray((images[:, 0] * 0.5 + 0.5) * 255, np.uint8)
sheet = [(pixels[i], str(labels[i])) for i in range(16)]
Picture(contact_sheet, sheet, "The first 16 images of the batch, and their labels")

# %% [markdown]
# ### Cells 7 and 8: flat images

# %%
# images = images.view(images.shape[0], -1)
# images.shape
images = flatten(images)
compare(8, "shape of the flat batch", images.shape)

# %% [markdown]
# ### Cells 9 and 10: logits and their loss
#
# `model(images)` becomes `model.apply(params, images)`: the weights are an argument like any other.
# That is what will let us differentiate with respect to them, and have two sets of them at once.

# %%
# logits = model(images)
# loss = criterion(logits, labels)
logits = model.apply(params, images)
loss = cross_entropy(logits, labels).mean()
compare(10, "cross-entropy", loss)

# %% [markdown]
# ln 10 = 2.3026 is the loss of ten equal guesses: an untrained network knows nothing.
#
# ### Cells 11 to 15: log-softmax and the negative log likelihood
#
# The same loss in two steps: a log-softmax as the last layer, then the negative log likelihood.
# `exp` turns the log-probabilities into probabilities.

# %%
# model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
#                       nn.Linear(64, 10), nn.LogSoftmax(dim=1))
# criterion = nn.NLLLoss()
model = MLP(log_probs=True)
params = init_params(generator)

# images, labels = next(iter(trainloader))
# print(images.shape)
images, labels = next_batch()
compare(12, "shape of a batch", images.shape)

# %%
# images = images.view(images.shape[0], -1)
# log_prob = model(images)
# loss = criterion(log_prob, labels)
images = flatten(images)
log_probs = model.apply(params, images)
loss = nll_loss(log_probs, labels).mean()
compare(15, "negative log likelihood", loss)

# %% [markdown]
# The probabilities of an image sum to 1, and the cross-entropy of the logits is the same loss:

# %%
jnp.exp(log_probs).sum(axis=1)[:3], cross_entropy(MLP().apply(params, images), labels).mean()

# %% [markdown]
# ## Gradient descent
#
# Autograd writes down every operation on a tensor that has `requires_grad=True` while your code
# runs, and `.backward()` walks through that record in reverse. In JAX arrays are only numbers:
# there is nothing to mark, because you do not differentiate an array but a *function*.
#
# ### Cells 16 and 17: x and its square

# %%
# x = torch.randn((2,2), requires_grad=True)
x = jnp.asarray(generator.randn((2, 2)))
compare(16, "x = randn(2, 2)", x)

# %%
# y = x ** 2
y = x**2
compare(17, "y = x ** 2", y)

# %% [markdown]
# ### Cells 18 and 19: the record of what was computed
#
# What takes the place of `grad_fn`? JAX calls the function with a stand-in for `x`, a *tracer*, and
# notes what is done to it. The note is called a *jaxpr*, and you may read it. All of JAX works so:
# `jax.grad` differentiates what it traced, `jax.jit` compiles it, `jax.vmap` widens it to many
# inputs at once.


# %%
# y.grad_fn
# z = y.mean()
# z.grad_fn
def square(x: jax.Array) -> jax.Array:
    """The notebook's y."""
    return x**2


def mean_square(x: jax.Array) -> jax.Array:
    """The notebook's z."""
    return square(x).mean()


show(18, "y.grad_fn", jax.make_jaxpr(square)(x))

# %%
show(19, "z.grad_fn", jax.make_jaxpr(mean_square)(x))

# %% [markdown]
# ### Cells 20 to 23: the gradient of x
#
# `x.grad` is None until `.backward()` has filled it in. Our `x` never gets a gradient: `jax.grad`
# turns the function into another function, and the gradient is what that one returns. z is the mean
# of four squares, so its gradient is 2x / 4 = x / 2.

# %%
# x.grad
show(21, "x.grad before", f"has x a .grad? {hasattr(x, 'grad')}")

# %%
# z.backward()
# x.grad
gradient = jax.grad(mean_square)(x)
compare(23, "gradient of z, x / 2", gradient)

# %%
gradient - x / 2

# %% [markdown]
# ### In place of no_grad
#
# Where you don't ask for a gradient, none is prepared: calling `mean_square(x)` *is* the block
# without gradients. To hold a part of a function constant, as `.detach()` does, wrap it in
# `stop_gradient`: one factor of x * x held, half the gradient is left.


# %%
# with torch.no_grad(): ...
# (x * x.detach()).mean()
def half_held(x: jax.Array) -> jax.Array:
    """`mean_square` with one of the two factors taken for a constant."""
    return (x * jax.lax.stop_gradient(x)).mean()


jax.grad(half_held)(x) / gradient

# %% [markdown]
# ### Cells 24 and 25: putting it all together
#
# Now for the network. The function to differentiate is the loss as a function of the parameters:
# forward pass and criterion together. Its gradient has the shape of `params`, a dict of arrays.
# `to_state_dict` gives such a dict PyTorch's names, so `model[0].weight.grad` is
# `to_state_dict(grads)["0.weight"]`.

# %%
# model = nn.Sequential(...)
# images, labels = next(iter(trainloader))
# images = images.view(images.shape[0], -1)
params = init_params(generator)
batch = next_batch()


# logits = model(images)
# loss = criterion(logits, labels)
def loss_fn(params: Any, batch: Dataset) -> jax.Array:
    """The loss of a batch: what `loss.backward()` goes back through."""
    log_probs = model.apply(params, flatten(batch.images))
    return nll_loss(log_probs, batch.labels).mean()


# print('Before backward pass: \n', model[0].weight.grad)
show(25, "before backward", "a gradient that nobody asked for is nowhere")

# %%
# loss.backward()
# print('After backward pass: \n', model[0].weight.grad)
earlier_grads = jax.grad(loss_fn)(params, batch)
compare(25, "gradient of the first weight", to_state_dict(earlier_grads)["0.weight"])

# %% [markdown]
# ### Cell 26: an optimizer
#
# An optimizer in PyTorch holds on to the parameters and changes them. One of optax is a pair of
# pure functions: `init` makes its state (plain SGD needs none), `update` turns gradients into
# updates.

# %%
# optimizer = optim.SGD(model.parameters(), lr=0.01)
tx = optax.sgd(0.01)
opt_state = tx.init(params)

# %% [markdown]
# ### Cell 27: one pass through the network
#
# PyTorch *adds* each gradient to `.grad`, so a training pass starts with `zero_grad()`; leave it
# out and you train on a sum. Here there is nothing to zero. A gradient is a value, and asking twice
# gives the same one twice. Where a sum is what you want, because a batch does not fit into memory
# at once, you write the sum.

# %%
# print('Initial weights - ', model[0].weight)
compare(27, "initial weights", to_state_dict(params)["0.weight"])

# %%
# images, labels = next(iter(trainloader))
# images.resize_(64, 784)
# optimizer.zero_grad()
# output = model(images)
# loss = criterion(output, labels)
# loss.backward()
# print('Gradient -', model[0].weight.grad)
batch = next_batch()
grads = jax.grad(loss_fn)(params, batch)
compare(27, "gradient of the first weight", to_state_dict(grads)["0.weight"])

# %%
again = jax.grad(loss_fn)(params, batch)
accumulated = jax.tree.map(jnp.add, earlier_grads, grads)
np.array([to_state_dict(tree)["0.weight"][1, 0] for tree in (grads, again, accumulated)])

# %% [markdown]
# ### Cell 28: an update
#
# `optimizer.step()` changes the weights in place. Ours makes new ones, and the old are still there
# if you keep their name.

# %%
# optimizer.step()
# print('Updated weights - ', model[0].weight)
updates, opt_state = tx.update(grads, opt_state, params)
updated = optax.apply_updates(params, updates)
compare(28, "updated weights", to_state_dict(updated)["0.weight"])


# %% [markdown]
# ### One compiled step
#
# Cells 24 to 28 are a pure function of parameters, optimizer state and batch. `jax.jit` compiles it
# as a whole, the first time that it is called; in a training loop this is all that you need. It
# gives the update of cell 28, up to rounding:


# %%
@jax.jit
def step(params: Any, opt_state: Any, batch: Dataset) -> tuple[Any, Any, jax.Array]:
    """Gradient and update."""
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


stepped, opt_state, loss = step(params, opt_state, batch)
loss, jnp.abs(to_state_dict(stepped)["0.weight"] - to_state_dict(updated)["0.weight"]).max()

# %% [markdown]
# ### The gradient of each image
#
# PyTorch adds up the gradients of a batch as it goes backward. `jax.vmap` makes a function of one
# example a function of many: here a gradient of the first weight for each of the 64 images.

# %%
each = Dataset(batch.images[:, None], batch.labels[:, None])  # 64 batches of one image
per_image = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, each)
per_image["params"]["linear_0"]["weight"].shape

# %% [markdown]
# ## Training for a few epochs
#
# `make_train_step` is the step above as `(state, batch) -> (state, metrics)`, and
# `make_train_epoch` runs it over all 938 batches inside one compiled program: the images go to the
# device once, the shuffled order is an argument, and Python is not called again until the epoch is
# over. That is where the speed comes from: pure functions can be compiled together.
#
# The losses agree to about 1e-4, not to the last digit: 4690 steps of float32 in another order of
# summation. Multiply the initial weights by 1 + 1e-7 * noise, train again, and the means move by as
# much as that.
#
# ### Cell 29: five epochs

# %%
# model = nn.Sequential(...)
# criterion = nn.NLLLoss()
# optimizer = optim.SGD(model.parameters(), lr=0.003)
params = jax.tree.map(jnp.asarray, init_params(generator))
tx = optax.sgd(0.003)
state = TrainState.create(params, tx)

# epochs = 5
# for e in range(epochs):
#     running_loss = 0
#     for images, labels in trainloader:
#         images = images.view(images.shape[0], -1)
#         optimizer.zero_grad()
#         output = model(images)
#         loss = criterion(output, labels)
#         loss.backward()
#         optimizer.step()
#         running_loss += loss.item()
#     else:
#         print(f"Training loss: {running_loss/len(trainloader)}")
from jaxmnist import classifier_metrics, classifier_objective, evaluate
from jaxmnist.training import make_train_epoch, make_train_step

objective = classifier_objective(model.apply, nll_loss)  # of the images as they came
train_epoch = jax.jit(make_train_epoch(make_train_step(objective, tx), batch_size=64))
train_on_device = jax.device_put(train)
metrics = classifier_metrics(model.apply, nll_loss)  # the notebook has no test; this one has
run_test = jax.jit(lambda params: evaluate(metrics, params, test))

losses, records = [], []
for e in range(1, 6):
    order = shuffled()
    state, step_metrics = train_epoch(state, train_on_device, order)
    losses.append(np.asarray(step_metrics["loss"], np.float64))
    # The notebook's mean: 938 losses, the last of only 32 images, added up as Python floats.
    epoch_loss = losses[-1].mean()
    compare(29, f"loss of epoch {e}", f"Training loss: {epoch_loss}", within=2e-4)
    found = run_test(state.params)
    scores = {"test_loss": float(found["loss"]), "test_accuracy": float(found["accuracy"])}
    records.append({"train_loss": float(epoch_loss), **scores})

# %%
f"{records[-1]['test_accuracy']:.2%} of the test images"

# %%
Picture(loss_curves, {"five epochs": records}, np.stack(losses))

# %% [markdown]
# ### Cell 30: a label
#
# The last cell looks at `labels`, left over from the loop: the last batch of the last epoch.

# %%
# labels[0]
*_, (images, labels) = batches(train, order=order)
compare(30, "labels[0]", labels[0])

# %% [markdown]
# ## Everything that was compared
#
# A number printed with four decimals counts as the same only if all four are; the difference is the
# largest one between printed numbers.

# %%
table()
