"""Damage files of every kind that is read: each must be refused in one line, or read as it is.

Refused is an error of the library's own in one line, in 5 seconds and 1 GiB, without a warning. A
file that is accepted must give what its bytes say. File n of a kind depends on the seed and n
alone; most are damaged behind their checksums. Files that fail, or kill the process, are kept.
"""

import argparse
import gzip
import hashlib
import io
import json
import random
import re
import resource
import signal
import struct
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

from jaxmnist import checkpoint
from jaxmnist.datasets.idx import read_idx
from jaxmnist.errors import JaxmnistError
from jaxmnist.pictures.predict import read_image
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import load_weights, to_safetensors, to_state_dict

SECONDS, MEMORY = 5.0, 2**30
SHAPE = (6, 4, 5)
IDX = struct.pack(">4I", 0x803, *SHAPE) + bytes(range(120))
PARAMS = init_params(TorchGenerator(0), (6, 4, 3))
STATE = {"step": np.int32(7), "params": {"kernel": np.ones((2, 3)), "bias": np.ones(3, "f2")}}

MARK = b'"jaxmnist_checkpoint":"{\\"sha256\\": \\"'
SIGNATURE = b"\x89PNG\r\n\x1a\n"
NUMBERS = (0, 1, 2, 3, 8, 13, 127, 255, 256, 20_000, 100_000, 2**31 - 1, 2**31, 2**32 - 1)
WORDS = (b'"F16"', b'"I32"', b'""', b'"\\u001b"', b"null", b"-1", b"0.5", b"9" * 5000, b"[[]]")


class Kind(NamedTuple):
    """A kind of file, and the parts that `join` puts right lengths and checksums around."""

    originals: list[bytes]
    read: Callable[[Path], Any]
    says: Callable[[bytes, Any], bool]  # do these bytes say what was read?
    split: Callable[[bytes], list[bytes]] = lambda content: [content]
    join: Callable[[list[bytes]], bytes] = b"".join


def damage(rng: random.Random, part: bytes) -> bytes:
    """Bits flipped, a piece lost, repeated, zero or added, or another number or word."""
    a, b = sorted(rng.randint(0, len(part)) for _ in range(2))
    flipped = bytearray(part)
    for _ in range(rng.randint(1, 8) if part else 0):
        flipped[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
    pieces = part[:a], part[:a] + part[b:], part[:b] + part[a:], part[:a] + bytes(b - a) + part[b:]
    zeros = bytes(10_000_000 if rng.random() < 0.02 else 1)
    longer = part + rng.randbytes(rng.choice((1, 8, 5000))), part + zeros
    number, at = rng.choice(NUMBERS), 4 * rng.randrange(16)
    packed = struct.pack(rng.choice(("<I", ">I", "<Q")), number)
    found = [match.span() for match in re.finditer(rb'-?\d+|"[^"\\]*"', part[:10_000])]
    start, end = rng.choice(found or [(a, b)])
    word = rng.choice((*WORDS, str(number).encode(), part[a:b]))
    others = part[:at] + packed + part[at + len(packed) :], part[:start] + word + part[end:]
    return rng.choice((bytes(flipped), *pieces, *longer, *others))


def make(name: str, kind: Kind, seed: int, n: int) -> bytes:
    """The n-th file of this kind and seed; one in 50 is whole."""
    rng = random.Random(f"{name} {seed} {n}")
    content = rng.choice(kind.originals)
    if rng.random() < 0.02:
        return content
    if rng.random() < 0.3:
        return damage(rng, content)
    parts = kind.split(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(parts))
        changed = [damage(rng, parts[i])]
        parts[i : i + 1] = changed if rng.random() < 0.8 else [*changed, parts[i]]
    content = kind.join(parts)
    return damage(rng, content) if rng.random() < 0.1 else content


# The parts of a kind, and the bytes that hold them.


def split_gzip(content: bytes) -> list[bytes]:
    return [gzip.decompress(content)]


def join_gzip(parts: list[bytes]) -> bytes:
    return gzip.compress(b"".join(parts), 1, mtime=0)


def split_safetensors(content: bytes) -> list[bytes]:
    start = 8 + int.from_bytes(content[:8], "little")
    return [content[8:start], content[start:]]


def join_safetensors(parts: list[bytes]) -> bytes:
    return struct.pack("<Q", len(parts[0])) + b"".join(parts)


def join_checkpoint(parts: list[bytes]) -> bytes:
    return with_checksum(join_safetensors(parts))


def with_checksum(content: bytes) -> bytes:
    at = content.find(MARK) + len(MARK)
    zeroed = content[:at] + b"0" * 64 + content[at + 64 :]
    digest = hashlib.sha256(zeroed).hexdigest().encode()
    return content[:at] + digest + content[at + 64 :] if at >= len(MARK) else content


def split_png(content: bytes) -> list[bytes]:
    """Name and data of each chunk; the pixels unpacked."""
    parts, at = [], len(SIGNATURE)
    while at < len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        name, data = content[at + 4 : at + 8], content[at + 8 : end]
        parts.append(name + (zlib.decompress(data) if name == b"IDAT" else data))
        at = end + 4
    return parts


def join_png(parts: list[bytes]) -> bytes:
    content = SIGNATURE
    for name, data in ((part[:4], part[4:]) for part in parts):
        data = zlib.compress(data) if name == b"IDAT" else data
        checksum = zlib.crc32(name + data)
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
    return content


# What the bytes say, found in another way.


def is_idx(content: bytes, array: np.ndarray) -> bool:
    raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return raw == IDX[:16] + array.tobytes() and array.shape == SHAPE


def is_weights(content: bytes, params: Any) -> bool:
    """The arrays that the header's JSON names, as float32; weights have no checksum."""
    header, data = split_safetensors(content)
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    found = {name: ("F32", [*x.shape], x.tobytes()) for name, x in to_state_dict(params).items()}
    return found == {
        name: (x["dtype"], x["shape"], data[slice(*x["data_offsets"])])
        for name, x in entries.items()
    }


def is_checkpoint(content: bytes, _: Any) -> bool:
    return with_checksum(content) == content


def is_picture(_: bytes, image: np.ndarray) -> bool:
    return (image.shape, image.dtype) == ((28, 28), np.uint8)


# The kinds.


def pictures(*formats: tuple[str, str]) -> list[bytes]:
    """The same digit in formats and modes of Pillow."""
    grey = np.full((40, 32), 230, np.uint8)
    grey[6:34, 14:18] = grey[6:10, 8:18] = 20
    files = []
    for kind, mode in formats:
        Image.fromarray(grey).convert(mode).save(buffer := io.BytesIO(), kind)
        files.append(buffer.getvalue())
    return files


def kinds(folder: Path) -> dict[str, Kind]:
    """The kinds by name; `folder` is for a checkpoint."""
    saved = checkpoint.save(folder, STATE, step=7, config={"hidden": [2, 3]}).read_bytes()
    read_state, read_shape = partial(checkpoint.load, like=STATE), partial(read_idx, shape=SHAPE)
    png = pictures(*(("PNG", mode) for mode in ("L", "RGB", "P", "1", "I;16", "RGBA", "LA")))
    header, *chunks = split_png(png[0])
    png.append(join_png([header, b"zTXtkey\0\0" + zlib.compress(bytes(10_000_000)), *chunks]))
    others = pictures(("JPEG", "L"), ("GIF", "P"), ("BMP", "L"))
    st, safetensors = split_safetensors, to_safetensors(PARAMS)
    return {
        "idx": Kind([IDX], read_shape, is_idx),
        "idx.gz": Kind([join_gzip([IDX])], read_shape, is_idx, split_gzip, join_gzip),
        "weights": Kind([safetensors], load_weights, is_weights, st, join_safetensors),
        "checkpoint": Kind([saved], read_state, is_checkpoint, st, join_checkpoint),
        "png": Kind(png, read_image, is_picture, split_png, join_png),
        "picture": Kind(others, read_image, is_picture),
    }


# The program.


def judge(kind: Kind, path: Path, content: bytes) -> str:
    """The word accepted, refused, or what is wrong."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings(action="error"):
            result = kind.read(path)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return "accepted" if kind.says(content, result) else "accepted, but not as it is"
    except JaxmnistError as error:
        if isinstance(error.__cause__, MemoryError | Warning | TimeoutError):
            return f"{type(error.__cause__).__name__}: {error.__cause__}"
        return "refused" if str(error).isprintable() else f"not one line: {str(error)!r}"
    except BaseException as error:  # a panic in Rust is no Exception
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(name: str, kind: Kind, files: int, seed: int, out: Path) -> bool:
    """Make, read and judge the files of a kind; print its row; are all good?"""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    tally = {"accepted": 0, "refused": 0, "failed": 0}
    for n in range(files):
        content, path = make(name, kind, seed, n), out / f"{name}-{seed}-{n}"
        path.write_bytes(content)
        verdict = judge(kind, path, content)
        tally[verdict if verdict in tally else "failed"] += 1
        if verdict in tally:
            path.unlink()
        else:
            print(f"{path}: {verdict[:500]}", file=sys.stderr, flush=True)
    print(f"| {name} | {' | '.join(f'{n:,}' for n in (files, *tally.values()))} |", flush=True)
    return not tally["failed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", help="this one only")
    parser.add_argument("--files", type=int, default=10_000, help="number of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"| kind | files | accepted | refused | failed |\n{'| --- ' * 5}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = kinds(Path(folder))
        names = [options.kind] if options.kind else found
        good = [fuzz(n, found[n], options.files, options.seed, options.out) for n in names]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
