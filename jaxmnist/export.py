"""A trained model for other programs: safetensors, StableHLO, ONNX, or a page to draw digits on.

Each function takes the parameters of an `MLP` and gives the content of a file. StableHLO and ONNX
are programs with the notebook's transforms inside: images uint8 `[n, 28, 28]` in, from 0 for
background to 255 for ink as in MNIST, logits float32 `[n, 10]` out, for any n from 1. They need the
extra `pip install 'jaxmnist[export]'`, whose packages are imported when used. Every function raises
a DataError as `layer_sizes` does.

>>> from jaxmnist.torch_compat import TorchGenerator, init_params
>>> page = to_page(init_params(TorchGenerator(0)))
>>> page[:15], len(page) > 500_000
('<!doctype html>', True)
"""

import base64
import importlib.resources
from typing import Any

import jax
import numpy as np

from jaxmnist.model import MLP
from jaxmnist.transforms import preprocess
from jaxmnist.types import Params
from jaxmnist.weights import layer_sizes, to_state_dict
from jaxmnist.weights import to_safetensors as to_safetensors

PLATFORMS = ("cpu", "cuda", "tpu")  # what the StableHLO program is lowered for


def to_stablehlo(params: Params) -> bytes:
    """The model as a StableHLO program that JAX alone loads and calls, on CPU, GPU and TPU.

    `jax.export.deserialize(content).call(images)` gives the logits, with matrix products in full
    float32. The same or a newer JAX loads it, for at least six months; an older one may refuse it:
    https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees. It names the Python
    files that it was traced from, unless `jax_traceback_in_locations_limit` is 0.
    """
    import flatbuffers  # noqa: F401  (jax.export needs it, and without it names no extra)
    from jax import export

    model = MLP(layer_sizes(params)[1:-1])
    images = jax.ShapeDtypeStruct(export.symbolic_shape("n, 28, 28"), np.uint8)

    def logits(images: jax.Array) -> Any:
        return model.apply(params, preprocess(images))

    with jax.default_matmul_precision("highest"):
        program = export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    return bytes(program.serialize())


def to_onnx(params: Params) -> bytes:
    """The model as an ONNX graph, opset 17: input "images", output "logits".

    `onnxruntime.InferenceSession(path).run(None, {"images": images})` gives `[logits]`. The number
    of images is free, which some runtimes refuse (OpenCV's). Weights bear their PyTorch names.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layer_sizes(params)
    state_dict = to_state_dict(params)
    constants = {"255": np.float32(255), "0.5": np.float32(0.5), **state_dict}
    nodes = [
        helper.make_node("Flatten", ["images"], ["pixels"], axis=1),
        helper.make_node("Cast", ["pixels"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["grey", "255"], ["share"]),  # ToTensor
        helper.make_node("Sub", ["share", "0.5"], ["shifted"]),  # Normalize((0.5,), (0.5,))
        helper.make_node("Div", ["shifted", "0.5"], ["x0"]),
    ]
    for k in range(0, len(state_dict), 2):  # PyTorch's numbers of the layers
        if k:
            nodes.append(helper.make_node("Relu", [f"linear{k - 2}"], [f"x{k}"]))
        inputs = [f"x{k}", f"{k}.weight", f"{k}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [f"linear{k}"], transB=1))
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "jaxmnist",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]  # of 2022, so that older runtimes read it
    model = helper.make_model_gen_version(graph, opset_imports=opsets, producer_name="jaxmnist")
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def to_page(params: Params) -> str:
    """The model as one HTML page: a sketchpad that shows the prediction while you draw.

    The page holds the weights and all its code, and needs no server and no network.
    """
    sizes = layer_sizes(params)
    arrays = to_state_dict(params).values()  # a layer's weight, its bias, the next layer's weight
    content = b"".join(value.astype("<f4").tobytes() for value in arrays)
    page = importlib.resources.files("jaxmnist.pictures").joinpath("page.html").read_text("utf-8")
    page = page.replace("{{sizes}}", "-".join(map(str, sizes)))
    return page.replace("{{weights}}", base64.encodebytes(content).decode())
