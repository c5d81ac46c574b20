"""What is exported gives the model's own logits, elsewhere."""

import filecmp
import re
import sys

import jax
import numpy as np
import pytest

from jaxmnist import export
from jaxmnist.errors import DataError
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import to_state_dict
from tests.helpers import logits_by_hand, refused


@pytest.fixture(params=[(784, 128, 64, 10), (784, 10)], ids=str)
def params(request):
    return draw(request.param)


def draw(sizes):
    """Weights that give logits of the size that trained ones give."""
    return jax.tree.map(lambda value: 3 * value, init_params(TorchGenerator(0), sizes))


def reference(params, images):
    """The notebook's model and transforms in float64."""
    return logits_by_hand(params, (images.reshape(len(images), -1) / 255 - 0.5) / 0.5)


def test_stablehlo_of_any_depth_and_for_every_platform(params, toy):
    pytest.importorskip("flatbuffers")
    from jax import export as jax_export

    program = jax_export.deserialize(export.to_stablehlo(params))
    assert program.platforms == ("cpu", "cuda", "tpu")
    (images,), (logits,) = program.in_avals, program.out_avals
    assert (str(images), str(logits)) == ("uint8[n,28,28]", "float32[n,10]")
    for images in (toy.images[:1], toy.images):
        expected = reference(params, images)
        np.testing.assert_allclose(program.call(images), expected, rtol=0, atol=1e-5)
    # Otherwise a GPU would multiply in TF32 and a TPU in bfloat16.
    products = re.findall(r"stablehlo.dot_general.*", program.mlir_module())
    assert len(products) >= len(params["params"])  # a platform may have its own
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def test_onnx_by_its_reference_implementation(params, toy):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    content = export.to_onnx(params)
    (logits,) = ReferenceEvaluator(content).run(["logits"], {"images": toy.images})
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference(params, toy.images), rtol=0, atol=1e-5)
    model = onnx.load_from_string(content)
    assert (model.opset_import[0].version, model.producer_name) == (17, "jaxmnist")
    assert {array.name for array in model.graph.initializer} > set(to_state_dict(params))


def test_a_page_with_no_network_and_no_more_than_700_kb(params):
    page = export.to_page(params)
    assert len(page.encode()) < 700_000
    assert "{{" not in page
    # It is a name, which nobody fetches.
    assert set(re.findall(r"\w+://[^'\"\s]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|img|link|iframe)[^>]* (src|href)=\"(?!data:)", page)


@pytest.mark.parametrize("to", [export.to_stablehlo, export.to_onnx, export.to_page])
def test_another_model_is_refused(to):
    with pytest.raises(DataError, match="a model of 783 numbers and 10 classes, not of 784 and 10"):
        to(draw((783, 10)))


@pytest.mark.slow
def test_the_script_writes_every_format(script, trained_run, tmp_path):
    pytest.importorskip("flatbuffers")
    pytest.importorskip("onnx")
    out = tmp_path / "new" / "out"
    names = ["weights.safetensors", "model.stablehlo", "model.onnx", "sketchpad.html"]
    code, stdout, stderr = script("export.py", trained_run, "--out", out)
    assert (code, stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == set(names)
    for name in names:
        size = round((out / name).stat().st_size / 1000)
        assert [name, str(size), "kB"] in [line.split() for line in stdout.splitlines()]
    assert filecmp.cmp(out / names[0], trained_run / names[0], shallow=False)
    # Whoever gets the program is not told where this machine keeps its files.
    assert b".py" not in (out / "model.stablehlo").read_bytes()


def test_what_the_script_refuses(script, trained_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    refused(script("export.py", trained_run, "--out", out, "--formats", "pickle"), 2, "pickle")
    monkeypatch.setitem(sys.modules, "onnx", None)
    words = "onnx is not installed for this Python: ", "[export"
    refused(script("export.py", trained_run, "--out", out, "--formats", "page", "onnx"), 1, *words)
    assert not out.exists()
    out.touch()
    refused(script("export.py", trained_run, "--out", out, "--formats", "page"), 1, str(out))


@pytest.mark.oracle
def test_every_test_image_in_onnxruntime(mnist):
    onnxruntime = pytest.importorskip("onnxruntime")
    params, images = draw((784, 128, 64, 10)), mnist[1].images
    session = onnxruntime.InferenceSession(export.to_onnx(params))
    for n in (1, len(images)):
        (logits,) = session.run(None, {"images": images[:n]})
        np.testing.assert_allclose(logits, reference(params, images[:n]), rtol=0, atol=2e-5)
