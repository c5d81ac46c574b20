"""Ways to damage a file: functions of a random generator and a file's bytes that return others."""

import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
ODD: tuple[Any, ...] = (
    None,
    True,
    "",
    "\n\x1b[31m",
    "1",
    -1,
    0.5,
    2,
    1e300,
    2**63,
    2**64,
    [],
    {},
    [[]],
    [2**40] * 3,
)


def flip(rng: random.Random, content: bytes) -> bytes:
    """One to eight flipped bits."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, content: bytes) -> bytes:
    """The file ends early."""
    return content[: rng.randint(0, len(content))]


def grow(rng: random.Random, content: bytes) -> bytes:
    """Something follows the file's end."""
    n = rng.choice((1, 8, 100, 5000))
    return content + rng.choice((bytes(n), rng.randbytes(n), content[:n]))


def zero(rng: random.Random, content: bytes) -> bytes:
    """A part holds zeros, as after a power cut."""
    start, end = _slice(rng, content)
    return content[:start] + bytes(end - start) + content[end:]


def swap(rng: random.Random, content: bytes) -> bytes:
    """Two parts in each other's place."""
    a, b, c = sorted(rng.randint(0, len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def repeat(rng: random.Random, content: bytes) -> bytes:
    """A part twice, or not at all."""
    start, end = _slice(rng, content)
    return content[:start] + content[start:end] * rng.choice((0, 2)) + content[end:]


ANYWHERE: tuple[Mutation, ...] = (flip, truncate, grow, zero, swap, repeat)


def damage(rng: random.Random, content: bytes, mutations: Sequence[Mutation]) -> bytes:
    """One to three of the mutations, one after the other."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(mutations)(rng, content)
    return content


def edit_idx(rng: random.Random, content: bytes) -> bytes:
    """Another magic number, type, count of dimensions or size in the header of a raw IDX file."""
    changed = bytearray(content)
    if rng.random() < 0.3:
        changed[rng.randrange(4) : 4] = bytes([rng.choice((0, 1, 3, 8, 9, 13, 14, 255))])
    else:
        at = 4 * rng.randint(0, 3)
        old = int.from_bytes(changed[at : at + 4], "big")
        new = rng.choice((*NUMBERS, old + 1, old - 1, old << 8, rng.getrandbits(32)))
        changed[at : at + 4] = struct.pack(">I", new & 0xFFFFFFFF)
    return bytes(changed)


def edit_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Another value somewhere in the header's JSON, or another length of it."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.1:
        length = rng.choice((*NUMBERS, length + 1, length - 1, 10**8, 2**63, 2**64 - 1))
        return struct.pack("<Q", length % 2**64) + content[8:]
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return content
    text = _edit_text(rng, json.dumps(_edit_json(rng, header), separators=(",", ":")))
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def edit_metadata(rng: random.Random, content: bytes) -> bytes:
    """Another value in the JSON that a checkpoint's metadata holds as a string."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        (key,) = header["__metadata__"]
        header["__metadata__"][key] = json.dumps(
            _edit_json(rng, json.loads(header["__metadata__"][key]))
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return content
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _edit_json(rng: random.Random, value: Any) -> Any:
    """`value` with one change, in it or in something that it holds."""
    if rng.random() < 0.15 or not (isinstance(value, dict | list) and value):
        if isinstance(value, int) and rng.random() < 0.7:
            return rng.choice((*NUMBERS, value + 1, value - 1, value * 2, -value, 2**63, 2**64))
        if isinstance(value, str) and rng.random() < 0.7:
            return rng.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "C64", "F8_E4M3", "F4"))
        return rng.choice(ODD)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        new = rng.choice(([], [_edit_json(rng, value[at])], [value[at], value[at]]))
        return [*value[:at], *new, *value[at + 1 :]]
    key = rng.choice(list(value))
    action = rng.random()
    if action < 0.7:
        return {**value, key: _edit_json(rng, value[key])}
    rest = {name: held for name, held in value.items() if name != key}
    if action < 0.8:
        return rest
    other = rng.choice((key + "0", key[:-1], "\n\x1b[31m", "", rng.choice(list(value))))
    return {**rest, other: value[key]} if action < 0.9 else {**value, other: value[key]}


def _edit_text(rng: random.Random, text: str) -> bytes:
    """Now and then JSON that no program writes: nested deeply, a key twice, a number too long."""
    action = rng.random()
    if action < 0.02:
        text = text[:-1] + ',"x":' + "[" * 5000 + "]" * 5000 + "}"
    elif action < 0.04:
        text = text[:-1] + "," + text[1:]
    elif action < 0.06:
        text = text.replace("0", "9" * 5000, 1)
    elif action < 0.08:
        text = text.replace('"', '"\\ud800', 1)
    elif action < 0.1:
        text += " " * rng.randint(1, 20)
    return text.encode()


def edit_png(rng: random.Random, content: bytes) -> bytes:
    """A chunk of a PNG changed, moved, repeated, left out or added, with right checksums."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return content
    k = rng.randrange(len(chunks))
    kind, data = chunks[k]
    action = rng.random()
    if action < 0.5:
        chunks[k] = (kind, _edit_chunk(rng, kind, data))
    elif action < 0.6:
        chunks[k : k + 1] = rng.choice(([], [chunks[k]] * 2))
    elif action < 0.7:
        rng.shuffle(chunks)
    elif action < 0.8:
        chunks[k] = (rng.choice((b"IDAT", b"IEND", b"PLTE", b"tRNS", b"abcd", b"ABCD")), data)
    else:
        bomb = zlib.compress(bytes(10_000_000), 9)
        chunks.insert(
            rng.randint(0, len(chunks)),
            rng.choice(
                (
                    (b"zTXt", b"key\0\0" + bomb),
                    (b"iTXt", b"key\0\1\0\0\0" + bomb),
                    (b"iCCP", b"name\0\0" + bomb),
                    (b"acTL", struct.pack(">II", rng.choice(NUMBERS), 0)),
                    (b"fcTL", struct.pack(">IIIIIHHBB", *rng.choices(NUMBERS[:9], k=9))),
                    (b"eXIf", rng.randbytes(40)),
                    (b"gAMA", bytes(4)),
                    (b"pHYs", struct.pack(">IIB", 0, 2**32 - 1, 1)),
                )
            ),
        )
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _edit_chunk(rng: random.Random, kind: bytes, data: bytes) -> bytes:
    if kind == b"IHDR" and rng.random() < 0.8:  # width, height, bit depth, colour type, ...
        field = rng.randrange(7)
        if field < 2:
            side = struct.pack(">I", rng.choice((*NUMBERS, 10_000, 20_000, 100_000)))
            return data[: 4 * field] + side + data[4 * field + 4 :]
        return data[: 6 + field] + bytes([rng.choice(NUMBERS[:9])]) + data[7 + field :]
    if kind == b"IDAT" and rng.random() < 0.5:
        try:
            return zlib.compress(damage(rng, zlib.decompress(data), ANYWHERE))
        except zlib.error:
            pass
    return damage(rng, data, ANYWHERE)


def _slice(rng: random.Random, content: bytes) -> tuple[int, int]:
    start, end = sorted(rng.randint(0, len(content)) for _ in range(2))
    return start, end
