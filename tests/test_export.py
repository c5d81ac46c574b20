"""What is exported gives the model's own logits, elsewhere."""

import itertools
import os
import re
import stat
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from jaxmnist import (
    MLP,
    classifier_objective,
    epoch_order,
    export,
    init_state,
    make_train_epoch,
    make_train_step,
    preprocess,
)
from jaxmnist.errors import DataError
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import layer_sizes, save_weights, to_state_dict
from tests.helpers import refused

# Loads and calls a StableHLO program as somebody does who has JAX and NumPy, and nothing of ours.
ELSEWHERE = """
import sys
import numpy as np
from jax import export

with open(sys.argv[1], "rb") as file:
    program = export.deserialize(file.read())
images = np.load(sys.argv[2])
np.savez(sys.argv[3], *(program.call(images[:n]) for n in (1, 5, len(images))))
print(*{"jaxmnist", "flax", "optax", "jaxtyping"} & {name.split(".")[0] for name in sys.modules})
"""


@pytest.fixture
def keep_jax_config():
    """The script sets both for its process."""
    before = jax.config.jax_platforms, jax.config.jax_traceback_in_locations_limit
    yield
    jax.config.update("jax_platforms", before[0])
    jax.config.update("jax_traceback_in_locations_limit", before[1])


@pytest.fixture(params=[(784, 128, 64, 10), (784, 10), (784, 7, 5, 3, 10)], ids=str)
def params(request):
    return draw(request.param)


def draw(sizes):
    """Weights that give logits of the size that trained ones give."""
    params = init_params(TorchGenerator(0), sizes)
    return jax.tree.map(lambda value: 3 * value, params)


def reference(params, images):
    """The notebook's model and transforms in float64."""
    x = (images.reshape(len(images), -1) / 255 - 0.5) / 0.5
    layers = params["params"]
    for k in range(len(layers)):
        x = x @ layers[f"linear_{k}"]["weight"].T.astype(np.float64) + layers[f"linear_{k}"]["bias"]
        x = x if k == len(layers) - 1 else np.maximum(x, 0)
    return x


def call_elsewhere(content, images, directory):
    """The logits of the first image, of five and of all."""
    (directory / "program").write_bytes(content)
    np.save(directory / "images.npy", images)
    paths = [directory / name for name in ("program", "images.npy", "logits.npz")]
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *paths], cwd=directory, check=True, capture_output=True
    ).stdout
    assert found == b"\n"
    with np.load(paths[-1]) as logits:
        return list(logits.values())


def test_safetensors_keeps_every_bit(params):
    found = safetensors.numpy.load(export.to_safetensors(params))
    expected = to_state_dict(params)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_stablehlo_elsewhere(toy, tmp_path):
    pytest.importorskip("flatbuffers")
    params = draw((784, 128, 64, 10))
    expected = reference(params, toy.images)
    found = call_elsewhere(export.to_stablehlo(params), toy.images, tmp_path)
    for logits, n in zip(found, (1, 5, 100), strict=True):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[:n], rtol=0, atol=1e-5)


def test_stablehlo_of_any_depth_and_for_every_platform(params, toy):
    pytest.importorskip("flatbuffers")
    from jax import export as jax_export

    program = jax_export.deserialize(export.to_stablehlo(params))
    assert program.platforms == ("cpu", "cuda", "tpu")
    (images,), (logits,) = program.in_avals, program.out_avals
    assert (str(images.shape), images.dtype) == ("(n, 28, 28)", np.uint8)
    assert (str(logits.shape), logits.dtype) == ("(n, 10)", np.float32)
    expected = reference(params, toy.images)
    np.testing.assert_allclose(program.call(toy.images), expected, rtol=0, atol=1e-5)
    # Or else a GPU would multiply in TF32 and a TPU in bfloat16.
    products = re.findall(r"stablehlo.dot_general.*", program.mlir_module())
    assert len(products) >= len(params["params"])  # a platform may have its own
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def test_onnx_by_its_reference_implementation(params, toy):
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    content = export.to_onnx(params)
    (logits,) = ReferenceEvaluator(content).run(None, {"images": toy.images})
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference(params, toy.images), rtol=0, atol=1e-5)


def test_a_page_with_no_network_and_no_more_than_700_kb(params):
    page = export.to_page(params)
    assert len(page.encode()) < 700_000
    assert "{{" not in page
    addresses = set(re.findall(r"\w+://[^'\"\s]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
    assert not re.search(r"<(script|img|link|iframe)[^>]* (src|href)=\"(?!data:)", page)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((783, 128, 10), "takes 783 numbers and gives 10"),
        ((784, 128, 26), "takes 784 numbers and gives 26"),
    ],
)
def test_another_model_is_refused(sizes, message):
    for to in (export.to_safetensors, export.to_page):
        with pytest.raises(DataError, match=message):
            to(draw(sizes))


def test_weights_that_are_no_numbers_are_refused():
    params = draw((784, 10))
    params["params"]["linear_0"]["bias"][3] = np.nan
    with pytest.raises(DataError, match=r"0\.bias holds numbers that are not finite"):
        layer_sizes(params)


@pytest.fixture
def weights(tmp_path):
    """What scripts/train.py --out leaves, as far as it matters here."""
    directory = tmp_path / "run"
    save_weights(directory / "weights.safetensors", draw((784, 20, 10)))
    return directory


@pytest.mark.usefixtures("keep_jax_config")
def test_the_script_writes_every_format(script, weights, tmp_path):
    for package in ("flatbuffers", "onnx"):
        pytest.importorskip(package)
    out = tmp_path / "new" / "out"
    code, stdout, stderr = script("export.py", weights, "--out", out)
    assert (code, stderr) == (0, "")
    names = ["weights.safetensors", "model.stablehlo", "model.onnx", "sketchpad.html"]
    assert {path.name for path in out.iterdir()} == {*names, "export.json"}
    first, *lines, last = stdout.splitlines()
    assert "784-20-10" in first
    for name, line in zip(names, lines, strict=True):
        assert line.split()[:3] == [name, str(round((out / name).stat().st_size / 1000)), "kB"]
    assert "uint8 [n, 28, 28]" in last
    original = (weights / "weights.safetensors").read_bytes()
    assert (out / "weights.safetensors").read_bytes() == original
    # Whoever gets the program is not told where this machine keeps its files.
    assert b".py" not in (out / "model.stablehlo").read_bytes()


@pytest.mark.usefixtures("keep_jax_config")
@pytest.mark.parametrize(("package", "name"), [("onnx", "onnx"), ("flatbuffers", "stablehlo")])
def test_a_missing_package_is_named_with_its_extra(
    script, weights, tmp_path, monkeypatch, package, name
):
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    code, stdout, stderr = script("export.py", weights, "--out", out, "--formats", "page", name)
    assert (code, stdout) == (1, "")
    assert stderr.startswith(f"export.py: error: --formats {name} needs {package}: ")
    assert "[export]" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # Those that need no extra packages do without.
    file = weights / "weights.safetensors"
    code, *_ = script("export.py", file, "--out", out, "--formats", "safetensors", "page", "page")
    assert code == 0
    expected = ["export.json", "sketchpad.html", "weights.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == expected


@pytest.mark.usefixtures("keep_jax_config")
def test_what_it_wrote_can_be_written_again_and_nothing_else(script, weights, tmp_path):
    out = tmp_path / "out"
    options = (weights, "--out", out, "--formats", "safetensors")
    before = os.umask(0o027)
    try:
        for _ in range(2):
            assert script("export.py", *options)[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {path.name for path in tmp_path.iterdir()} == {"out", "run"}
    content = (out / "weights.safetensors").read_bytes()
    for name, change in {
        "weights.safetensors": lambda path: path.write_bytes(b"edited"),
        "mine.txt": lambda path: path.write_text("precious"),
        "export.json": lambda path: path.write_text("[" * 100_000),
    }.items():
        change(out / name)
        changed = (out / name).read_bytes()
        refused(script("export.py", *options), 2, "already exists", str(out))
        assert (out / name).read_bytes() == changed
        (out / "mine.txt").unlink(missing_ok=True)
        (out / "weights.safetensors").write_bytes(content)


@pytest.mark.usefixtures("keep_jax_config")
def test_what_cannot_be_exported(script, weights, tmp_path):
    out = tmp_path / "out"
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"no weights")
    other = tmp_path / "other.safetensors"
    save_weights(other, draw((784, 26)))
    for options, expected, message in [
        ((weights, "--out", weights), 2, f"--out {weights}: already exists"),
        ((weights, "--out", out, "--formats"), 2, "--formats needs at least one of safetensors"),
        ((weights, "--out", out, "--formats", "pickle"), 2, "pickle"),
        ((tmp_path, "--out", out), 1, f"{tmp_path}/weights.safetensors: cannot be read"),
        ((foreign, "--out", out), 1, f"{foreign}: damaged"),
        ((other, "--out", out), 1, f"{other}: the model takes 784 numbers and gives 26"),
    ]:
        code, stdout, stderr = script("export.py", *options)
        assert (code, stdout) == (expected, ""), stderr
        assert message in stderr
        assert stderr.count("\n") == 1
        assert not out.exists()


def train_an_epoch(train, rate=0.01):
    model, tx, key = MLP(), optax.sgd(rate), jax.random.key(0)
    train_epoch = jax.jit(make_train_epoch(make_train_step(classifier_objective(model.apply), tx)))
    order = epoch_order(key, 0, len(train.labels))
    state, _ = train_epoch(init_state(model, tx, key), train, order)
    return jax.device_get(state.params)


@pytest.fixture(scope="module")
def trained(mnist):
    """A model trained on the real MNIST, and its logits for all 10,000 test images."""
    train, test = mnist
    params = train_an_epoch(train)
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(MLP().apply(params, preprocess(test.images)))
    assert (logits.argmax(axis=1) == test.labels).mean() > 0.8
    return params, test.images, logits


@pytest.mark.oracle
def test_stablehlo_on_every_test_image(trained, tmp_path):
    pytest.importorskip("flatbuffers")
    params, images, expected = trained
    *_, logits = call_elsewhere(export.to_stablehlo(params), images, tmp_path)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.oracle
def test_onnx_on_every_test_image(trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    params, images, expected = trained
    session = onnxruntime.InferenceSession(export.to_onnx(params))
    (logits,) = session.run(None, {"images": images})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    (one,) = session.run(["logits"], {"images": images[:1]})
    np.testing.assert_allclose(one, expected[:1], rtol=0, atol=1e-5)


@pytest.mark.oracle
def test_safetensors_in_pytorch_on_every_test_image(trained, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    params, images, expected = trained
    (tmp_path / "weights.safetensors").write_bytes(export.to_safetensors(params))
    nn = torch.nn
    pairs = itertools.pairwise((784, 128, 64, 10))
    linears = [nn.Linear(inputs, outputs) for inputs, outputs in pairs]
    model = nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    x = torch.from_numpy(images).to(torch.float32).div(255).sub(0.5).div(0.5)
    with torch.no_grad():
        logits = model(x.view(len(x), -1)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
