"""PyTorch itself as the oracle: its random stream, transforms, weight files and training."""

import itertools
import pickle
import re
import tracemalloc
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import (
    MLP,
    classifier_metrics,
    classifier_objective,
    evaluate,
    make_train_epoch,
    make_train_step,
)
from jaxmnist.data import Dataset
from jaxmnist.errors import DataError
from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order, pass_in_order
from jaxmnist.training import TrainState
from jaxmnist.transforms import normalize, to_tensor
from jaxmnist.weights import load_weights, save_weights, to_state_dict

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

pytestmark = pytest.mark.oracle

SEEDS = [0, 1, 165286645, 2**31 + 5, 2**40 + 17, -1, 2**64 - 1, -(2**63)]


@pytest.fixture(autouse=True)
def full_precision():
    """On a GPU, matrix products are TF32 unless asked otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def torch_mlp(*, log_probs=False):
    nn = torch.nn
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *([nn.LogSoftmax(dim=1)] if log_probs else []))


def torch_transform(images):
    """ToTensor and Normalize((0.5,), (0.5,)) as torchvision computes them, and the view."""
    images = images.to(torch.float32).div(255).sub_(0.5).div_(0.5)
    return images.view(len(images), -1)


def torch_u64():
    return int(torch.empty((), dtype=torch.int64).random_())


def numpy_state(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_initial(model, params):
    state_dict = to_state_dict(params)
    assert list(state_dict) == list(model.state_dict())
    for name, value in numpy_state(model).items():
        np.testing.assert_array_equal(state_dict[name], value, strict=True)


# The random stream.


@pytest.mark.parametrize("seed", SEEDS)
def test_models_and_three_epochs_of_a_loader(seed):
    torch.manual_seed(seed)
    generator = TorchGenerator(seed)
    for n in (60_000, 1_000, 999):
        loader = torch.utils.data.DataLoader(range(n), batch_size=64, shuffle=True)
        assert_initial(torch_mlp(), init_params(generator))
        visited = torch.cat(list(loader)).numpy()
        np.testing.assert_array_equal(loader_order(generator, n), visited)
    assert_initial(torch_mlp(log_probs=True), init_params(generator))


def visited(loader):
    return [int(index) for (batch,) in loader for index in batch]


def seeded_loader(n, seed=3, **options):
    """The numbers to n, and a loader that shuffles them."""
    torch.manual_seed(seed)
    data = torch.utils.data.TensorDataset(torch.arange(n))
    return data, torch.utils.data.DataLoader(data, 64, shuffle=True, **options)


def test_a_test_loader_in_each_epoch():
    _, loader = seeded_loader(100)
    test = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(9)))
    generator, expected = TorchGenerator(3), []
    for _ in range(3):
        expected.append(visited(loader))
        visited(test)
    for order in expected:
        assert loader_order(generator, 100).tolist() == order
        pass_in_order(generator)


def test_a_look_at_a_batch():
    _, loader = seeded_loader(100)
    next(iter(loader))
    generator = TorchGenerator(3)
    loader_order(generator, 100)
    assert loader_order(generator, 100).tolist() == visited(loader)


def test_a_random_split():
    data, _ = seeded_loader(100)
    train, _ = torch.utils.data.random_split(data, [80, 20])
    loader = torch.utils.data.DataLoader(train, 64, shuffle=True)
    generator = TorchGenerator(3)
    chosen = generator.randperm(100)[:80]
    order = loader_order(generator, 80)
    assert chosen[order].tolist() == visited(loader)


def test_persistent_workers():
    workers = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}
    _, loader = seeded_loader(100, **workers)
    generator = TorchGenerator(3)
    for epoch in range(3):
        order = loader_order(generator, 100, workers_persist=epoch > 0)
        assert order.tolist() == visited(loader)


@pytest.mark.parametrize("seed", SEEDS)
def test_randperm_and_the_legacy_loader(seed):
    torch.manual_seed(seed)
    generator = TorchGenerator(seed)
    for n in (0, 1, 2, 3, 10, 1000, 60_000):
        np.testing.assert_array_equal(generator.randperm(n), torch.randperm(n).numpy())
        assert generator.u64() & (2**63 - 1) == torch_u64()
    torch_u64()
    expected = torch.randperm(60_000).numpy()
    np.testing.assert_array_equal(loader_order(generator, 60_000, legacy=True), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform(seed):
    torch.manual_seed(seed)
    generator = TorchGenerator(seed)
    for low, high in ((0.0, 1.0), (-(784**-0.5), 784**-0.5), (-0.1, 0.3), (3.0, 1e6)):
        for shape in ((), (1,), (7, 3), (1000, 333)):
            expected = torch.empty(shape).uniform_(low, high).numpy()
            np.testing.assert_array_equal(generator.uniform(shape, low, high), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_randn(seed):
    """Odd sizes below 16 leave a value over; sizes not divisible by 16 draw their end again."""
    torch.manual_seed(seed)
    generator = TorchGenerator(seed)
    for n in (4, 100, *range(40), 1000, 5, 100_000, 1):
        expected = torch.randn(n).numpy()
        np.testing.assert_allclose(generator.randn((n,)), expected, rtol=0, atol=1e-6)
        assert generator.u64() & (2**63 - 1) == torch_u64()


@pytest.mark.parametrize("sizes", [(5, 3), (1, 1, 1), (7, 11, 13, 17, 19), (3072, 10)])
def test_linear_layers_of_other_sizes(sizes):
    torch.manual_seed(0)
    params = init_params(TorchGenerator(0), sizes)["params"]
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        linear = torch.nn.Linear(fan_in, fan_out)
        weight, bias = params[f"linear_{k}"]["weight"], params[f"linear_{k}"]["bias"]
        np.testing.assert_array_equal(weight, linear.weight.detach().numpy(), strict=True)
        np.testing.assert_array_equal(bias, linear.bias.detach().numpy(), strict=True)


# Transforms.


def test_transforms_of_every_byte():
    byte = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    unit = torch.from_numpy(byte).to(torch.float32).div(255)
    expected = torch_transform(torch.from_numpy(byte))
    for wrap, array in itertools.product((lambda f: f, jax.jit), (np.asarray, jnp.asarray)):
        np.testing.assert_array_equal(wrap(to_tensor)(array(byte)), unit.numpy())
        both = wrap(lambda images: normalize(to_tensor(images)))(array(byte))
        np.testing.assert_array_equal(both.reshape(1, 256), expected)


# Weights.


@pytest.fixture(scope="module")
def examples():
    """3,250 images that ten noisy patterns make: learnable, and 51 batches, one short."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 3250, dtype=np.int32)
    patterns = rng.random((10, 28, 28)) * (rng.random((10, 28, 28)) < 0.3)
    images = 255 * patterns[labels] * rng.random((3250, 28, 28))
    return Dataset(images.astype(np.uint8), labels)


def torch_losses(model, optimizer, dataset, orders):
    """The notebook's loop, cell 29, from an in-memory dataset: the loss of every step."""
    images, labels = (torch.from_numpy(np.array(array)) for array in dataset)
    criterion, losses = torch.nn.CrossEntropyLoss(), []
    for order in orders:
        for rows in torch.from_numpy(order).split(64):
            optimizer.zero_grad()
            loss = criterion(model(torch_transform(images[rows])), labels[rows].long())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return np.array(losses)


def our_losses(params, tx, dataset, orders):
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    train_epoch = jax.jit(make_train_epoch(make_train_step(classifier_objective(MLP().apply), tx)))
    dataset, losses = jax.device_put(dataset), []
    for order in orders:
        state, metrics = train_epoch(state, dataset, order)
        losses.append(metrics["loss"])
    return np.concatenate(losses), state.params


@pytest.fixture(scope="module")
def trained(examples):
    torch.manual_seed(3)
    model = torch_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = torch_losses(model, optimizer, examples, 2 * [np.arange(3250)])
    assert losses[-1] < losses[0] / 3
    return model


def logits_of_torch(model, images):
    with torch.no_grad():
        return model(torch_transform(torch.from_numpy(np.array(images)))).numpy()


def logits_of_jax(params, images):
    return MLP().apply(params, normalize(to_tensor(jnp.asarray(images))))


def test_weights_of_pytorch_give_its_logits(trained, examples, tmp_path):
    expected = logits_of_torch(trained, examples.images)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    # Its format of before 2020, a plain pickle; and names that say nothing or something else.
    legacy = {"_use_new_zipfile_serialization": False}
    torch.save(trained.state_dict(), tmp_path / "model.pth.tar", **legacy)
    torch.save(trained.state_dict(), tmp_path / "w.safetensors")
    save_file(trained.state_dict(), tmp_path / "w.bin")
    for name in ("w.pt", "model.pth.tar", "w.safetensors", "w.bin"):
        logits = logits_of_jax(load_weights(tmp_path / name), examples.images)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_weights_of_ours_give_the_same_logits_in_pytorch(examples, tmp_path):
    params = MLP().init(jax.random.key(0), jnp.zeros((1, 784)))
    save_weights(tmp_path / "w.safetensors", params)
    model = torch_mlp()
    model.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    logits = logits_of_torch(model, examples.images)
    expected = logits_of_jax(params, examples.images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


with warnings.catch_warnings(action="ignore"):  # which is not shown when it is loaded
    SPARSE = torch.ones(3, 3).to_sparse_csr()


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"\x80\x04\x95 not a pickle"),
        lambda path: path.write_bytes(b"PK\x03\x04" + b"\x00" * 50),
        lambda path: path.write_bytes(pickle.dumps(Touch(path.with_name("touched")))),
        lambda path: torch.save(Touch(path.with_name("touched")), path),
        lambda path: torch.save(torch_mlp(), path),
        lambda path: torch.save([torch.ones(3)], path),
        lambda path: torch.save({"0.weight": "text", "0.bias": 3}, path),
        lambda path: torch.save(torch_mlp().bfloat16().state_dict(), path),
        lambda path: torch.save({"0.weight": SPARSE, "0.bias": SPARSE}, path),
    ],
)
def test_damaged_and_foreign_pt_files(make, tmp_path):
    path = tmp_path / "w.pt"
    make(path)
    with pytest.raises(DataError) as error:
        load_weights(path)
    assert str(error.value) == f"{path}: damaged, or not a PyTorch state dict of float32 arrays"
    assert list(tmp_path.iterdir()) == [path]


def expanded(path):
    """One number that stands for 10^10 of them."""
    torch.save({"0.weight": torch.ones(1).expand(100_000, 100_000), "0.bias": torch.ones(1)}, path)


def compressed(path):
    """A good file of 40 MB in a small archive, which torch.save never makes."""
    torch.save({"0.weight": torch.zeros(1000, 10_000), "0.bias": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries:
            archive.writestr(entry.filename, content)


@pytest.mark.parametrize("make", [expanded, compressed])
def test_pt_files_take_no_more_memory_than_their_size(make, tmp_path):
    path = tmp_path / "w.pt"
    make(path)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"w.pt: its arrays take [\d,]+ bytes, more than the file"):
        load_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000  # NumPy's arrays are counted
    tracemalloc.stop()


def test_truncated_pt_files(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(torch_mlp().state_dict(), path)
    content = path.read_bytes()
    for size in (10, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"w.pt: damaged, or not a PyTorch state dict of"):
            load_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: torch_mlp().half().state_dict(), "0.weight and 0.bias are float16"),
        (lambda: torch_mlp()[:2].state_dict() | {5: torch.ones(1)}, "unexpected keys [5], missing"),
        (
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch_mlp()[0]).state_dict(),
            "unexpected keys ['1.bias', '1.weight'], missing keys ['0.weight', '0.bias']",
        ),
        (
            lambda: {"state_dict": torch_mlp().state_dict(), "epoch": 3},
            "unexpected keys ['epoch', 'state_dict'], missing keys ['0.weight', '0.bias']",
        ),
    ],
)
def test_pt_files_of_other_models(content, message, tmp_path):
    torch.save(content(), tmp_path / "w.pt")
    with pytest.raises(DataError, match=re.escape(f"w.pt: {message}")):
        load_weights(tmp_path / "w.pt")


# Training.

MOMENTUM = {"lr": 0.01, "momentum": 0.9}
OPTIMIZERS = {
    "sgd": ({"lr": 0.003}, optax.sgd(0.003), 51),
    "all three": (
        MOMENTUM | {"weight_decay": 1e-2, "nesterov": True},
        optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.01, 0.9, nesterov=True)),
        20,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_loss_of_the_first_steps(name, examples):
    options, tx, steps = OPTIMIZERS[name]
    torch.manual_seed(0)
    model = torch_mlp()
    generator = TorchGenerator(0)
    params, order = init_params(generator), loader_order(generator, 3250)[: steps * 64]
    theirs = torch_losses(model, torch.optim.SGD(model.parameters(), **options), examples, [order])
    ours, params = our_losses(params, tx, examples, [order])
    assert len(ours) == steps
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    for key, value in to_state_dict(params).items():
        np.testing.assert_allclose(value, numpy_state(model)[key], rtol=0, atol=1e-5)


def test_two_epochs_on_mnist(mnist):
    """Seed 0 stays together to 2e-5; other seeds need not, nor does PyTorch with itself.

    In some of an epoch's 11 million inputs of a ReLU, rounding decides on which side of 0 it is,
    and so whether a gradient flows. Measured for seeds 0, 1, 2 on one CPU, in the two means:
    PyTorch with 1 thread and with 2 up to 8e-5 apart; with weights times (1 + 1e-7 noise) up to
    2.4e-5; ours up to 8e-5 (7.9e-6 for seed 0), and for seed 2 within 6e-7 of 1 thread.
    """
    train, test = mnist
    torch.manual_seed(0)
    model = torch_mlp()
    loader = torch.utils.data.DataLoader(range(60_000), batch_size=64, shuffle=True)
    visited = [torch.cat(list(loader)).numpy() for _ in range(2)]
    theirs = torch_losses(model, torch.optim.SGD(model.parameters(), lr=0.003), train, visited)

    generator = TorchGenerator(0)
    params = init_params(generator)
    orders = [loader_order(generator, 60_000) for _ in range(2)]
    ours, params = our_losses(params, optax.sgd(0.003), train, orders)

    np.testing.assert_allclose(ours[:50], theirs[:50], rtol=0, atol=1e-5)
    our_means = ours.astype(np.float64).reshape(2, 938).mean(axis=1)
    their_means = theirs.reshape(2, 938).mean(axis=1)
    np.testing.assert_allclose(our_means, their_means, rtol=0, atol=2e-5)
    right = logits_of_torch(model, test.images).argmax(axis=1) == test.labels
    accuracy = evaluate(classifier_metrics(MLP().apply), params, test)["accuracy"]
    assert abs(float(accuracy) - right.mean()) <= 1e-3
    assert accuracy > 0.8
