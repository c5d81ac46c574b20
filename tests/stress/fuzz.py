"""Damage files of every kind that the library reads: each must be refused or read as it is.

Refused is an error of the library's own in one line, in 5 seconds and 1 GiB, without a warning. A
file that is accepted must give what a second reader finds in its bytes. File n of a kind depends on
the seed and n alone. Each kind has a process of its own; files that fail, or kill it, are kept.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save

from jaxmnist import checkpoint
from jaxmnist.datasets.idx import read_idx
from jaxmnist.errors import JaxmnistError
from jaxmnist.pictures.predict import read_image
from jaxmnist.weights import load_weights

SECONDS, MEMORY = 5.0, 2**30
SHAPE = (6, 4, 5)
STATE = {"step": np.int32(7), "params": {"kernel": np.ones((2, 3)), "bias": np.ones(3, "f2")}}
MARK = b'"jaxmnist_checkpoint":"{\\"sha256\\": \\"'
NUMBERS = (0, 1, 2, 3, 8, 13, 127, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1)
TOKENS = (b'"F16"', b'"I32"', b'""', b'"\\u001b"', b"null", b"-1", b"0.5", b"9" * 5000, b"[[]]")


class Kind(NamedTuple):
    """A kind of file."""

    files: int
    originals: list[bytes]
    edit: Callable[[random.Random, bytes], bytes]  # damage that a parser sees
    read: Callable[[Path], Any]
    is_right: Callable[[bytes, Any], bool]  # are these bytes read as this?


def damage(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, a part lost, repeated or zero, or something behind the end."""
    a, b = sorted(rng.randint(0, len(content)) for _ in range(2))
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    zeros, twice = content[:a] + bytes(b - a) + content[b:], content[:b] + content[a:]
    longer = content + rng.randbytes(rng.choice((1, 8, 5000)))
    shorter = content[:a], content[:a] + content[b:]
    return rng.choice((bytes(changed), *shorter, zeros, twice, longer))


def edit_idx(rng: random.Random, content: bytes) -> bytes:
    """Another magic number or size, and perhaps packed."""
    at = rng.randrange(0, 16, rng.choice((1, 4)))
    content = content[:at] + struct.pack(">I", rng.choice(NUMBERS)) + content[at + 4 :]
    content += bytes(10_000_000) if rng.random() < 0.01 else b""
    return gzip.compress(content, 1, mtime=0) if rng.random() < 0.5 else content


def edit_header(rng: random.Random, content: bytes) -> bytes:
    """Another number or string in the JSON that begins a safetensors file, or another length."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if found := list(re.finditer(rb'-?\d+|"[^"\\]*"', header)):
        token = rng.choice(found)
        new = rng.choice((*TOKENS, str(rng.choice(NUMBERS)).encode(), rng.choice(found)[0]))
        header = header[: token.start()] + new + header[token.end() :]
    length = rng.choice((*NUMBERS, 2**63)) if rng.random() < 0.1 else len(header)
    return struct.pack("<Q", length) + header + data


def edit_checkpoint(rng: random.Random, content: bytes) -> bytes:
    """An edited header, in half of the files with the right checksum."""
    content = edit_header(rng, content)
    return with_checksum(content) if rng.random() < 0.5 else content


def with_checksum(content: bytes) -> bytes:
    at = content.find(MARK) + len(MARK)
    zeroed = content[:at] + b"0" * 64 + content[at + 64 :]
    digest = hashlib.sha256(zeroed).hexdigest().encode()
    return content[:at] + digest + content[at + 64 :] if at >= len(MARK) else content


def edit_png(rng: random.Random, content: bytes) -> bytes:
    """A chunk of a PNG damaged, or one that unpacks to 10 MB added, with right checksums."""
    chunks, at = [], 8
    while content.startswith(b"\x89PNG") and at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return damage(rng, content)
    k, bomb = rng.randrange(len(chunks)), b"key\0\0" + zlib.compress(bytes(10_000_000), 9)
    kind, data = chunks[k]
    if kind == b"IHDR" and rng.random() < 0.7:
        side = struct.pack(">I", rng.choice((*NUMBERS, 20_000, 100_000)))
        data = rng.choice((side + data[4:], data[:4] + side + data[8:], damage(rng, data)))
    elif kind == b"IDAT" and rng.random() < 0.5:
        with contextlib.suppress(zlib.error):  # it may be damaged already
            data = zlib.compress(damage(rng, zlib.decompress(data)))
    else:
        data = damage(rng, data)
    extra = (rng.choice((b"zTXt", b"iCCP", b"acTL", b"eXIf", b"PLTE", b"IEND")), bomb)
    chunks[k : k + 1] = rng.choice(([(kind, data)], [(kind, data)], [chunks[k]] * 2, [extra]))
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def pictures() -> list[bytes]:
    """The same digit in Pillow's common formats."""
    grey = np.full((40, 32), 230, np.uint8)
    grey[6:34, 14:18] = grey[6:10, 8:18] = 20
    pairs = [("PNG", mode) for mode in ("L", "RGB", "P", "1", "I;16", "RGBA", "LA")]
    files = []
    for kind, mode in (*pairs, ("JPEG", "L"), ("GIF", "P"), ("BMP", "L")):
        Image.fromarray(grey).convert(mode).save(buffer := io.BytesIO(), kind)
        files.append(buffer.getvalue())
    return files


def is_idx(content: bytes, array: np.ndarray) -> bool:
    raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return raw == struct.pack(">4I", 0x803, *SHAPE) + array.tobytes() and array.shape == SHAPE


def is_weights(content: bytes, params: Any) -> bool:
    """The arrays that the header's JSON names, as float32; weights have no checksum."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    found: dict[str, tuple] = {}
    for layer, leaves in params["params"].items():
        place = 2 * int(layer.removeprefix("linear_"))
        for leaf, array in leaves.items():
            found[f"{place}.{leaf}"] = "F32", list(array.shape), array.tobytes()
    return found == {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def is_checkpoint(content: bytes, _: Any) -> bool:
    return with_checksum(content) == content


def is_picture(_: bytes, image: np.ndarray) -> bool:
    return (image.shape, image.dtype) == ((28, 28), np.uint8)


def kinds() -> dict[str, Kind]:
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (4, 6), "0.bias": (4,), "2.weight": (3, 4), "2.bias": (3,)}
    weights = save({name: rng.random(shape, np.float32) for name, shape in shapes.items()})
    idx = struct.pack(">4I", 0x803, *SHAPE) + rng.bytes(120)
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.save(folder, STATE, step=7, config={"hidden": [2, 3]}).read_bytes()
    load_checkpoint = partial(checkpoint.load, like=STATE)
    packed = [idx, gzip.compress(idx, 1, mtime=0)]
    return {
        "idx": Kind(100_000, packed, edit_idx, lambda path: read_idx(path, SHAPE), is_idx),
        "weights": Kind(10_000, [weights], edit_header, load_weights, is_weights),
        "checkpoints": Kind(10_000, [saved], edit_checkpoint, load_checkpoint, is_checkpoint),
        "pictures": Kind(10_000, pictures(), edit_png, read_image, is_picture),
    }


def make(name: str, kind: Kind, seed: int, n: int) -> bytes:
    """The n-th file of this kind and seed; one in 50 is whole."""
    rng = random.Random(f"{name} {seed} {n}")
    content = rng.choice(kind.originals)
    for _ in range(rng.choice((1, 1, 2, 3)) if rng.random() < 0.98 else 0):
        content = rng.choice((damage, kind.edit))(rng, content)
    return content


def judge(kind: Kind, path: Path, content: bytes) -> str:
    """The word accepted, refused, or what is wrong."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = kind.read(path)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return "accepted" if kind.is_right(content, result) else "accepted, but not as it is"
    except JaxmnistError as error:
        if isinstance(error.__cause__, MemoryError | Warning | TimeoutError):
            return f"{type(error.__cause__).__name__}: {error.__cause__}"
        return "refused" if str(error).isprintable() else f"not one line: {str(error)!r}"
    except BaseException as error:  # a panic in Rust is no Exception
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name: str, files: int | None, seed: int, out: Path) -> bool:
    """Make, read and judge the files of a kind; print its row; are all good?"""
    kind = kinds()[name]
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    tally = {"accepted": 0, "refused": 0, "failed": 0}
    for n in range(kind.files if files is None else files):
        content, path = make(name, kind, seed, n), out / f"{name}-{seed}-{n}"
        path.write_bytes(content)
        verdict = judge(kind, path, content)
        tally[verdict if verdict in tally else "failed"] += 1
        if verdict in tally:
            path.unlink()
        else:
            print(f"{path}: {verdict}", file=sys.stderr)
    cells = [name, *(f"{count:,}" for count in (sum(tally.values()), *tally.values()))]
    print(f"| {' | '.join(cells)} |", flush=True)
    return not tally["failed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=kinds(), help="one kind, in this process")
    parser.add_argument("--files", type=int, help="number of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.kind:
        sys.exit(not fuzz(options.kind, options.files, options.seed, options.out))
    cells = ("kind", "files", "accepted", "refused", "failed")
    print(f"| {' | '.join(cells)} |\n{'| --- ' * len(cells)}|", flush=True)
    command = [sys.executable, "-m", "tests.stress.fuzz", *sys.argv[1:], "--kind"]
    ended = {name: subprocess.run([*command, name]).returncode for name in kinds()}
    for name in (name for name, code in ended.items() if code < 0):
        print(f"{name}: the process died, {ended[name]}; its file is kept", file=sys.stderr)
    sys.exit(any(ended.values()))


if __name__ == "__main__":
    main()
