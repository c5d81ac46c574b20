"""PyTorch itself as the oracle: its random stream, transforms, weight files and training."""

import io
import itertools
import pickle
import re
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist.errors import DataError
from jaxmnist.evaluation import classifier_metrics, evaluate
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order, pass_in_order
from jaxmnist.training import TrainState, make_train_epoch, make_train_step
from jaxmnist.transforms import normalize, to_tensor
from jaxmnist.weights import load_weights, to_safetensors, to_state_dict

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.utils.data import DataLoader, random_split  # noqa: E402

pytestmark = pytest.mark.oracle

SEEDS = [0, 165286645, 2**31 + 5, 2**40 + 17, -1, -(2**63)]
SIZES = (784, 128, 64, 10)


@pytest.fixture(autouse=True)
def full_precision():
    """On a GPU, matrix products are TF32 unless asked otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def torch_mlp(sizes=SIZES):
    pairs = itertools.pairwise(sizes)
    layers = [layer for pair in pairs for layer in (torch.nn.Linear(*pair), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1])


def torch_transform(images):
    """ToTensor and Normalize((0.5,), (0.5,)) as torchvision computes them, and the view."""
    images = images.to(torch.float32).div(255).sub_(0.5).div_(0.5)
    return images.view(len(images), -1)


def torch_u63():
    return int(torch.empty((), dtype=torch.int64).random_())


def visited(loader):
    return torch.cat(list(loader)).numpy()


# The random stream.


@pytest.fixture(params=SEEDS)
def generator(request):
    """PyTorch's stream and ours, from the same seed."""
    torch.manual_seed(request.param)
    return TorchGenerator(request.param)


def test_models_and_epochs_of_a_loader(generator):
    other_sizes = (1, 1, 1), (7, 11, 13, 17, 19), (3072, 10)
    for n, sizes in zip((60_000, 1000, 999, 5), (SIZES, *other_sizes), strict=True):
        loader = DataLoader(range(n), batch_size=64, shuffle=True)
        params = init_params(generator, sizes)
        expected = {name: x.numpy() for name, x in torch_mlp(sizes).state_dict().items()}
        np.testing.assert_equal(to_state_dict(params), expected)
        np.testing.assert_array_equal(loader_order(generator, n), visited(loader))


def test_a_split_a_look_at_a_batch_and_a_test_in_each_epoch(generator):
    train, test = random_split(range(100), [80, 20])
    chosen = generator.randperm(100)[:80]
    loader = DataLoader(train, 64, shuffle=True)
    next(iter(loader))
    loader_order(generator, 80)
    for _ in range(3):
        order = loader_order(generator, 80)
        np.testing.assert_array_equal(chosen[order], visited(loader))
        visited(DataLoader(test))
        pass_in_order(generator)


@pytest.mark.parametrize("generator", [3], indirect=True)
def test_persistent_workers(generator):
    workers = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}
    loader = DataLoader(range(100), 64, shuffle=True, **workers)
    for epoch in range(3):
        order = loader_order(generator, 100, workers_persist=epoch > 0)
        np.testing.assert_array_equal(order, visited(loader))


def test_randperm_and_the_legacy_loader(generator):
    for n in (0, 1, 2, 3, 10, 1000, 60_000):
        np.testing.assert_array_equal(generator.randperm(n), torch.randperm(n).numpy())
        assert generator.u64() & (2**63 - 1) == torch_u63()
    torch_u63()
    expected = torch.randperm(60_000).numpy()
    np.testing.assert_array_equal(loader_order(generator, 60_000, legacy=True), expected)


def test_uniform(generator):
    for low, high in ((0.0, 1.0), (-(784**-0.5), 784**-0.5), (-0.1, 0.3), (3.0, 1e6)):
        for shape in ((), (1,), (7, 3), (1000, 333)):
            expected = torch.empty(shape).uniform_(low, high).numpy()
            np.testing.assert_array_equal(generator.uniform(shape, low, high), expected)


def test_randn(generator):
    """Odd sizes below 16 leave a value over; sizes not divisible by 16 draw their end again."""
    for n in (4, 100, *range(40), 1000, 5, 100_000, 1):
        expected = torch.randn(n).numpy()
        np.testing.assert_allclose(generator.randn((n,)), expected, rtol=0, atol=1e-6)
        assert generator.u64() & (2**63 - 1) == torch_u63()


# Transforms.


def test_transforms_of_every_byte():
    """tests/test_transforms.py says how torchvision rounds; here PyTorch does."""
    byte = np.arange(256, dtype=np.uint8).reshape(1, 256)
    found = normalize(to_tensor(byte))
    np.testing.assert_array_equal(found, torch_transform(torch.from_numpy(byte)).numpy())


# Weights.


def assert_same_logits(model, params, images):
    with torch.no_grad():
        expected = model(torch_transform(torch.from_numpy(np.array(images)))).numpy()
    logits = MLP().apply(params, normalize(to_tensor(jnp.asarray(images))))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_weights_give_the_same_logits_in_both(toy, tmp_path):
    model = torch_mlp()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    # Its format of before 2020, a plain pickle; and names that say nothing or something else.
    legacy = {"_use_new_zipfile_serialization": False}
    torch.save(model.state_dict(), tmp_path / "model.pth.tar", **legacy)
    torch.save(model.state_dict(), tmp_path / "w.safetensors")
    save_file(model.state_dict(), tmp_path / "w.bin")
    for path in tmp_path.iterdir():
        assert_same_logits(model, load_weights(path), toy.images)
    params = MLP().init(jax.random.key(0), jnp.zeros((1, 784)))
    (tmp_path / "ours.safetensors").write_bytes(to_safetensors(params))
    model.load_state_dict(load_file(tmp_path / "ours.safetensors"), strict=True)
    assert_same_logits(model, params, toy.images)


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __reduce__(self):
        return open, ("touched", "w")


def saved(value):
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def compressed(value):
    """A good file in a smaller archive, which torch.save never makes."""
    with (
        zipfile.ZipFile(io.BytesIO(saved(value))) as old,
        zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


with warnings.catch_warnings(action="ignore"):  # which is not shown when it is loaded
    SPARSE = torch.ones(3, 3).to_sparse_csr()
GOOD = saved(torch_mlp().state_dict())
DAMAGED = "damaged, or not a PyTorch state dict of float32 arrays"
LARGER = "its arrays take "
EXPANDED = torch.ones(1).expand(100_000, 100_000)  # one number stands for 10^10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((GOOD[:size], DAMAGED) for size in (10, len(GOOD) // 2, len(GOOD) - 1)),
        (b"\x80\x04\x95 not a pickle", DAMAGED),
        (pickle.dumps(Touch()), DAMAGED),
        (saved(Touch()), DAMAGED),
        (saved(torch_mlp()), DAMAGED),
        (saved(torch_mlp().bfloat16().state_dict()), DAMAGED),
        (saved({"0.weight": SPARSE, "0.bias": SPARSE}), DAMAGED),
        (saved({"0.weight": EXPANDED, "0.bias": torch.ones(1)}), LARGER),
        (compressed({"0.weight": torch.zeros(100, 10_000), "0.bias": torch.zeros(100)}), LARGER),
        (saved(torch_mlp().half().state_dict()), "0.weight and 0.bias are float16"),
        (saved({5: torch.ones(1)}), "unexpected keys [5], missing keys ['0.weight', '0.bias']"),
        (saved({"state_dict": {}, "epoch": 3}), "unexpected keys ['epoch', 'state_dict'], missing"),
    ],
)
def test_pt_files_that_are_refused(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        load_weights(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing was executed


# Training.


def torch_losses(model, dataset, orders):
    """The notebook's loop, cell 29, from an in-memory dataset: the loss of every step."""
    images, labels = (torch.from_numpy(np.array(array)) for array in dataset)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    criterion, losses = torch.nn.CrossEntropyLoss(), []
    for order in orders:
        for rows in torch.from_numpy(order).split(64):
            optimizer.zero_grad()
            loss = criterion(model(torch_transform(images[rows])), labels[rows].long())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return np.array(losses)


def our_losses(params, dataset, orders):
    tx = optax.sgd(0.003)
    state = TrainState.create(jax.tree.map(jnp.asarray, params), tx)
    train_epoch = jax.jit(make_train_epoch(make_train_step(classifier_objective(MLP().apply), tx)))
    dataset, losses = jax.device_put(dataset), []
    for order in orders:
        state, metrics = train_epoch(state, dataset, order)
        losses.append(metrics["loss"])
    return np.concatenate(losses), state.params


@pytest.mark.parametrize("generator", [0], indirect=True)
def test_two_epochs_on_mnist(generator, mnist):
    """Seed 0 stays together to 2e-5; other seeds need not, nor does PyTorch with itself.

    In some of an epoch's 11 million inputs of a ReLU, rounding decides on which side of 0 it is,
    and so whether a gradient flows. Measured for seeds 0, 1, 2 on one CPU, in the two means:
    PyTorch with 1 thread and with 2 up to 8e-5 apart; with weights times (1 + 1e-7 noise) up to
    2.4e-5; ours up to 8e-5 (7.9e-6 for seed 0), and for seed 2 within 6e-7 of 1 thread.
    """
    train, test = mnist
    model, params = torch_mlp(), init_params(generator)
    orders = [loader_order(generator, 60_000) for _ in range(2)]
    theirs = torch_losses(model, train, orders)
    ours, params = our_losses(params, train, orders)
    np.testing.assert_allclose(ours[:50], theirs[:50], rtol=0, atol=1e-5)
    our_means = ours.astype(np.float64).reshape(2, 938).mean(axis=1)
    their_means = theirs.reshape(2, 938).mean(axis=1)
    np.testing.assert_allclose(our_means, their_means, rtol=0, atol=2e-5)
    with torch.no_grad():
        right = model(torch_transform(torch.tensor(test.images))).argmax(1).numpy() == test.labels
    accuracy = evaluate(classifier_metrics(MLP().apply), params, test)["accuracy"]
    assert abs(float(accuracy) - right.mean()) <= 1e-3
    assert accuracy > 0.8
