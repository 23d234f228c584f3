"""Damage to the bytes of a file, by chance or on purpose, under a digest that was left as it was."""

import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from bench.hostile.good_file import joined, parts_of

MIB = 1 << 20

#: From a seeded generator and the good file to the bytes of a bad one.
Mutate = Callable[[random.Random, bytes], bytes]


def _flip_bits(rng: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _flip_header_bits(rng: random.Random, good: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", good)
    data = bytearray(good)
    data[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _truncate(rng: random.Random, good: bytes) -> bytes:
    return good[: rng.randrange(len(good))]


def _splice(rng: random.Random, good: bytes) -> bytes:
    """Insert, delete, repeat or exchange a run of bytes."""
    at, size = rng.randrange(len(good)), rng.choice((1, 2, 8, 64, 512))
    piece = {
        0: rng.randbytes(size),
        1: b"",
        2: good[at : at + size] * 2,
        3: bytes(size),
        4: good[:size],
    }[rng.randrange(5)]
    return good[:at] + piece + good[at + rng.choice((0, size)) :]


def _append(rng: random.Random, good: bytes) -> bytes:
    return good + rng.choice((b"\0", b"\n", b" ", rng.randbytes(100), good, bytes(MIB)))


_LENGTHS = (0, 1, 7, 8, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _lie_about_length(rng: random.Random, good: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", good)
    lie = rng.choice((*_LENGTHS, length - 1, length + 1, length + 8, len(good), rng.getrandbits(64)))
    return struct.pack("<Q", lie) + good[8:]


def any_number(rng: random.Random) -> Any:
    """Return what a number in a file may be replaced by; some of it is none."""
    return rng.choice(
        (-1, 0, 1, 2**31, 2**48, 2**63, 2**64, 10**30, -(2**63), 1.5, 1e308, True, None, "4", [4], {})
    )


def _lie_about_tensors(rng: random.Random, good: bytes) -> bytes:
    """Huge, negative, overlapping, missing: offsets, shapes and dtypes that do not fit the bytes."""
    header, body = parts_of(good)
    name = rng.choice(("kv", "embeddings"))
    entry = header[name]
    begin, end = entry["data_offsets"]
    shift = rng.choice((1, 4, 16, end - begin))
    field, value = rng.choice(
        [
            ("data_offsets", [begin + shift, end + shift]),
            ("data_offsets", [begin - shift, end - shift]),
            ("data_offsets", [end, begin]),
            ("data_offsets", [begin, end + shift]),
            ("data_offsets", [0, 0]),
            ("data_offsets", [begin, any_number(rng)]),
            ("data_offsets", [any_number(rng), end]),
            ("data_offsets", any_number(rng)),
            ("shape", [2**20, 2**20, 2**20]),
            ("shape", [any_number(rng), *entry["shape"][1:]]),
            ("shape", entry["shape"] * rng.choice((2, 100, 10_000))),
            ("shape", []),
            ("shape", any_number(rng)),
            ("dtype", rng.choice(("F64", "I8", "U8", "BOOL", "F8_E4M3", "BF16 ", "bf16", "", None, 3))),
            ("extra", any_number(rng)),
        ]
    )  # fmt: skip
    if json.dumps(entry.get(field)) == json.dumps(value):
        return good
    entry[field] = value
    return joined(header, body)


def _hostile_header(rng: random.Random, good: bytes) -> bytes:
    """JSON that readers choke on: deep, repeated, huge, or no object at all."""
    header, body = parts_of(good)
    text = json.dumps(header).encode()
    depth = rng.choice((100, 10_000, 200_000))
    return joined(
        rng.choice(
            (
                b'{"a":' * depth,
                b"[" * depth + b"]" * depth,
                b'{"a":' + b"9" * rng.choice((400, 5000, 900_000)) + b"}",
                b'{"a":1e' + b"9" * 20 + b"}",
                text[:-1] + b',"kv":' + json.dumps(header["kv"]).encode() + b"}",
                text[:-1] + b',"__metadata__":{}}',
                text[:-1] + b',"\\u0000":' + json.dumps(header["kv"]).encode() + b"}",
                text + b"\0" * rng.choice((1, 8, 100)),
                text + b"\t",
                b"\xef\xbb\xbf" + text,
                text.decode().encode("utf-16"),
                b'"' + b"a" * (MIB - 10) + b'"',
                b"{" + b",".join(b'"%d":{}' % i for i in range(rng.choice((17, 60_000)))) + b"}",
                b"{}" + b" " * (2 * MIB),
                b"null",
                b"",
            )
        ),
        body,
    )


def _other_format(rng: random.Random, good: bytes) -> bytes:
    """Files of other kinds under a patch's name; the zip unpacks to a thousand times its size."""
    choice = rng.randrange(7)
    if choice == 0:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            # Of a fixed date: by default a name gets the time of day.
            archive.writestr(zipfile.ZipInfo("data.pkl"), bytes(MIB), zipfile.ZIP_DEFLATED)
        return packed.getvalue()
    if choice == 1:
        return pickle.dumps({"kv": list(range(rng.randrange(100)))})
    if choice == 2:
        return zlib.compress(bytes(MIB))
    if choice == 3:
        return b"GGUF" + rng.randbytes(500)
    if choice == 4:
        return rng.randbytes(rng.randrange(1, 4096))
    return bytes(rng.randrange(1, 4096)) if choice == 5 else b""


DAMAGE: dict[str, Mutate] = {
    "flipped bits": _flip_bits,
    "flipped bits of the header": _flip_header_bits,
    "truncated": _truncate,
    "spliced": _splice,
    "bytes behind the end": _append,
    "false header length": _lie_about_length,
    "false offsets, shapes, dtypes": _lie_about_tensors,
    "hostile JSON": _hostile_header,
}
#: Files of other kinds.
DISGUISES: dict[str, Mutate] = {"another kind of file": _other_format}
