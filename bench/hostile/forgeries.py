"""Files whose content is at fault and whose digest is right: computed anew, as an attacker would do it.

A finite tensor with a new digest is no member: it is a good patch of other content, and telling whose it is,
is what signatures are for.
"""

import json
import random
from typing import Any

from bench.hostile.damage import Mutate, any_number
from bench.hostile.good_file import Header, joined, parts_of, sealed
from patches.canonical import canonical_json
from patches.format import MANIFEST_KEY

_NAMES = (
    "../pirate", "..", ".", "/etc/passwd", "a/b", "a\\b", "pirate\0", "pirate\n", "", " ", "none", "None",
    "PIRATE", "p" * 65, "p" * 100_000, "pir\u0430te", "pirate\u200b", "\uff50irate", ".hidden", "-rf", "a,b",
    "a@1", "%2e%2e", "\x1b[2J", "\u202epirate", "con:", "pirate ", "\ud800",
)  # fmt: skip


def _hostile_manifest(rng: random.Random, good: bytes) -> bytes:
    """Sealed: names that are paths, fields that are missing, too many, or of another kind."""
    header, body = parts_of(good)
    manifest = json.loads(header["__metadata__"][MANIFEST_KEY])
    model = manifest["base_model"]
    huge = {"method": "compose", "components": [{"name": "a", "version": "1.0.0", "digest": "x"}] * 4000}
    change: dict[str, Any] = rng.choice(
        [
            {"name": rng.choice(_NAMES)},
            {"version": rng.choice(("1", "1.0", "v1.0.0", "1.0.0/..", "9" * 70 + ".0.0", "", 1, None))},
            {"base_model": {**model, rng.choice(sorted(model)): any_number(rng)}},
            {"num_virtual_tokens": rng.choice((0, -1, 4097, 2**63, 7, 9, 8.5, "8", True, None))},
            {"format_version": rng.choice((0, 2, "1", 1.5, True, None))},
            {"kind": rng.choice(("delta", "steering", "", None, 1))},
            {"origin": rng.choice(({"method": "pickle"}, {}, [], {"method": "compose"}, huge))},
            {"changelog": rng.choice(("\x1b[31m", "a\nb", "x" * 1001, "\u202e", 3, "\u2028"))},
            {"supersedes": rng.choice(("old", "../1", 3, "sha256:" + "g" * 64))},
            {rng.choice(("script", "code", "__class__", "py/object")): "os.system"},
        ]
    )  # fmt: skip
    if rng.random() < 0.1:
        manifest.pop(rng.choice(("format_version", "kind", "name", "version", "base_model", "origin")))
    else:
        manifest.update(change)
    try:
        text = canonical_json(manifest)
    except ValueError:
        text = json.dumps(manifest)
    header["__metadata__"][MANIFEST_KEY] = text
    return _sealed_or_joined(header, body)


def _sealed_or_joined(header: Header, body: bytes) -> bytes:
    try:
        return sealed(header, body)
    except (ValueError, TypeError):
        # A text that no digest can be taken of, such as half a surrogate pair.
        return joined(header, body)


_NOT_FINITE = {
    "kv": (b"\xc0\x7f", b"\x80\x7f", b"\x80\xff", b"\x81\xff"),
    "embeddings": (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\1\0\x80\x7f"),
}


def _not_finite(rng: random.Random, good: bytes) -> bytes:
    """Sealed: NaN or an infinity somewhere."""
    header, body = parts_of(good)
    data = bytearray(body)
    name = rng.choice(sorted(_NOT_FINITE))
    begin, end = header[name]["data_offsets"]
    value = rng.choice(_NOT_FINITE[name])
    at = begin + rng.randrange((end - begin) // len(value)) * len(value)
    data[at : at + len(value)] = value
    return sealed(header, bytes(data))


def _other_layout(rng: random.Random, good: bytes) -> bytes:
    """Sealed: another dtype of equal size, axes in another order, an unknown or a missing tensor."""
    header, body = parts_of(good)
    entry = header["kv"]
    choice = rng.randrange(4)
    if choice == 0:
        entry["dtype"] = "F16"
    elif choice == 1:
        shape = entry["shape"][:]
        while shape == entry["shape"]:
            rng.shuffle(shape)
        entry["shape"] = shape
    elif choice == 2:
        header[rng.choice(("kv2", "weights", "KV", "model.embed_tokens.weight", "../kv"))] = header.pop("kv")
    else:
        begin, end = entry["data_offsets"]
        entry["shape"] = [(end - begin) // 2]
    return sealed(header, body)


def _other_model(rng: random.Random, good: bytes) -> bytes:
    """Sealed: a good patch, under a name of its own, for a model that differs in one property."""
    header, body = parts_of(good)
    manifest = json.loads(header["__metadata__"][MANIFEST_KEY])
    manifest["name"] = f"pirate-{rng.randrange(1000)}"
    digest = "sha256:" + rng.randbytes(32).hex()
    change: dict[str, Any] = rng.choice(
        (
            {"tokenizer_digest": digest},
            {"weights_digest": digest},
            {"rope": {"rope_theta": rng.randrange(10_000), "rope_type": "default"}},
            {"architecture": f"Llama{rng.randrange(1000)}"},
        )
    )
    manifest["base_model"] |= change
    header["__metadata__"][MANIFEST_KEY] = canonical_json(manifest)
    return sealed(header, body)


FORGERIES: dict[str, Mutate] = {
    "hostile manifest, sealed": _hostile_manifest,
    "NaN and infinity, sealed": _not_finite,
    "another layout, sealed": _other_layout,
    "another model, sealed": _other_model,
}
