"""What is fuzzed: how each kind of file is made and damaged, read, and read once more to compare.

The second reading is a few lines of struct, json and NumPy that share nothing with the library.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors.numpy import save

from jaxmnist.datasets.idx import read_idx
from jaxmnist.runs import checkpoint
from jaxmnist.training import TrainState
from jaxmnist.weights import load_weights
from tests.stress.mutations import ANYWHERE, damage, edit_idx, edit_metadata, edit_safetensors


class Case(NamedTuple):
    """A damaged file, and the whole one that it was made from."""

    name: str
    content: bytes
    original: bytes
    about: Any = None


class Target(Protocol):
    """One kind of file."""

    def make(self, rng: random.Random) -> Case:
        """A file to read."""

    def read(self, path: Path, case: Case) -> Any:
        """What the library makes of it; a JaxmnistError where it refuses."""

    def is_right(self, case: Case, result: Any) -> bool:
        """Whether that is what the file's bytes say."""


class Idx:
    """Official files, raw and gzipped: jaxmnist.datasets.idx.read_idx."""

    shapes = ((6, 4, 5), (40,))

    def make(self, rng: random.Random) -> Case:
        """A small one; a gzipped one is damaged before or after it is packed."""
        shape = rng.choice(self.shapes)
        header = struct.pack(f">{1 + len(shape)}I", 8 << 8 | len(shape), *shape)
        original = header + rng.randbytes(int(np.prod(shape)))
        if rng.random() < 0.4:
            content = damage(rng, original, (*ANYWHERE, edit_idx, edit_idx, edit_idx))
            return Case("x", content, original, shape)
        packed = gzip.compress(original, 1, mtime=0)
        choice = rng.random()
        if choice < 0.01:
            packed = gzip.compress(original + bytes(10_000_000), 1, mtime=0)
        elif choice < 0.5:
            edited = damage(rng, original, (*ANYWHERE, edit_idx, edit_idx, edit_idx))
            packed = gzip.compress(edited, 1, mtime=0)
        else:
            packed = damage(rng, packed, ANYWHERE)
        return Case("x.gz", packed, original, shape)

    def read(self, path: Path, case: Case) -> Any:
        """The array."""
        return read_idx(path, case.about)

    def is_right(self, case: Case, result: Any) -> bool:
        """Whether the header is that of this shape and the array holds the bytes behind it."""
        raw = gzip.decompress(case.content) if case.name == "x.gz" else case.content
        fields = [
            int.from_bytes(raw[i : i + 4], "big") for i in range(4, 4 + 4 * len(case.about), 4)
        ]
        return (
            raw[:4] == bytes([0, 0, 8, len(case.about)])
            and fields == list(case.about) == list(result.shape)
            and list(raw[4 + 4 * len(fields) :]) == result.reshape(-1).tolist()
        )


def read_safetensors(content: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, list, bytes]]]:
    """The metadata, and the dtype, shape and bytes of each tensor."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", {})
    return metadata, {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


class Weights:
    """Weights as safetensors: jaxmnist.weights.load_weights."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shapes = {"0.weight": (4, 6), "0.bias": (4,), "2.weight": (3, 4), "2.bias": (3,)}
        arrays = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
        self._original = save(arrays, {"format": "pt"})

    def make(self, rng: random.Random) -> Case:
        """Damaged anywhere or in its header."""
        content = damage(rng, self._original, (*ANYWHERE, *[edit_safetensors] * 6))
        return Case("x.safetensors", content, self._original)

    def read(self, path: Path, case: Case) -> Any:
        """The params."""
        return load_weights(path)

    def is_right(self, case: Case, result: Any) -> bool:
        """Whether the params are the file's arrays; it has no checksum."""
        _, tensors = read_safetensors(case.content)
        expected = {}
        for name, (dtype, shape, data) in tensors.items():
            layer, leaf = name.split(".")
            array = np.frombuffer(data, "<f4").reshape(shape)
            expected[f"linear_{int(layer) // 2}", leaf] = array
            if dtype != "F32" or str(int(layer)) != layer:
                return False
        found = {
            (layer, leaf): array
            for layer, leaves in result["params"].items()
            for leaf, array in leaves.items()
        }
        return expected.keys() == found.keys() and all(
            found[key].shape == expected[key].shape
            and found[key].tobytes() == expected[key].tobytes()
            for key in expected
        )


class Checkpoints:
    """Checkpoints: jaxmnist.runs.checkpoint.load."""

    mark = b'"jaxmnist_checkpoint":"{\\"sha256\\": \\"'

    def __init__(self) -> None:
        params = {"kernel": np.random.default_rng(0).normal(size=(2, 3)), "bias": np.ones(3, "f2")}
        step: Any = np.int32(7)
        self._state = TrainState(step, params, ({"count": step}, ()))
        config, arrays = {"epochs": 5, "hidden": [2, 3]}, {"losses": np.arange(4.0)}
        with TemporaryDirectory() as directory:
            path = checkpoint.save(directory, self._state, config=config, arrays=arrays)
            self._original = path.read_bytes()

    def make(self, rng: random.Random) -> Case:
        """Damaged anywhere or in its header; half get the right checksum of their bytes."""
        mutations = (*ANYWHERE, *[edit_safetensors] * 4, *[edit_metadata] * 4)
        content = damage(rng, self._original, mutations)
        return Case(
            "x", self._with_checksum(content) if rng.random() < 0.5 else content, self._original
        )

    def _with_checksum(self, content: bytes) -> bytes:
        at = content.find(self.mark) + len(self.mark)
        if at < len(self.mark):
            return content
        zeroed = content[:at] + b"0" * 64 + content[at + 64 :]
        return content[:at] + hashlib.sha256(zeroed).hexdigest().encode() + content[at + 64 :]

    def read(self, path: Path, case: Case) -> Any:
        """The checkpoint."""
        return checkpoint.load(path, self._state)

    def is_right(self, case: Case, result: Any) -> bool:
        """Whether it is, bit for bit, the original or damaged but with the right checksum."""
        if self._with_checksum(case.content) != case.content:
            return False
        metadata, tensors = read_safetensors(case.content)
        held = json.loads(metadata["jaxmnist_checkpoint"])
        (count, _), params = result.state.opt_state, result.state.params
        found = {
            "state.step": result.state.step,
            "state.params['kernel']": params["kernel"],
            "state.params['bias']": params["bias"],
            "state.opt_state[0]['count']": count["count"],
            **{f"arrays.{name}": array for name, array in result.arrays.items()},
        }
        dtypes = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I32": "<i4", "U8": "u1", "BOOL": "?"}
        return (
            (held["format"], held["config"]) == (1, result.config)
            and tensors.keys() == found.keys()
            and all(
                list(found[name].shape) == shape
                and found[name].tobytes() == data
                and (dtype not in dtypes or found[name].dtype == dtypes[dtype])
                for name, (dtype, shape, data) in tensors.items()
            )
        )
