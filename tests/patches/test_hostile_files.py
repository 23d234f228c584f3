"""Files made to harm: each is refused with an error that names what is wrong."""

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import pytest

from patches.canonical import canonical_json
from patches.container import MAX_HEADER_BYTES
from patches.digest import patch_digest
from patches.errors import PatchFormatError
from patches.format import DIGEST_KEY, MANIFEST_KEY, Patch, decode_patch, encode_patch, find_problems
from patches.manifest import MAX_MANIFEST_BYTES

Make = Callable[..., Patch]
Header = dict[str, Any]


@pytest.fixture
def data(make: Make) -> bytes:
    patch = make()
    return encode_patch(patch.manifest, patch.tensors)


def parts(data: bytes) -> tuple[Header, bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Header | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def sealed(header: Header, body: bytes) -> bytes:
    """Give the file the digest that its content has, so that only the content can be at fault."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    header["__metadata__"][DIGEST_KEY] = patch_digest(
        header["__metadata__"][MANIFEST_KEY],
        [(n, e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in entries.items()],
    )
    return join(header, body)


def refusal(data: bytes) -> PatchFormatError:
    with pytest.raises(PatchFormatError) as caught:
        decode_patch(data)
    return caught.value


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_file_shorter_than_its_length_field_is_truncated(data: bytes, length: int) -> None:
    assert refusal(data[:length]).reason == "truncated"


def test_every_truncation_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        assert refusal(data[:length]).reason in {"truncated", "bad_header", "not_safetensors"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x04\x95" + b"\x00" * 200, "not_safetensors"),
        (b"PK\x03\x04" + b"\x00" * 200, "not_safetensors"),
        (b"GGUF" + b"\x00" * 200, "not_safetensors"),
        (struct.pack("<Q", 2**64 - 1) + b"{" * 100, "too_large"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{" * (MAX_HEADER_BYTES + 1), "too_large"),
        (struct.pack("<Q", 1000) + b"{}", "truncated"),
        (struct.pack("<Q", 0), "bad_header"),
    ],
)
def test_other_kinds_of_file_are_recognised(content: bytes, reason: str) -> None:
    assert refusal(content).reason == reason


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":1,"a":1}', "appears twice"),
        (b"{" + b'"a":{' * 50_000, "nested too deeply|Expecting"),
        (b'{"a":NaN}', "NaN is no JSON number"),
        (b'{"a":' + b"9" * 5000 + b"}", "header: not readable"),
        (b'{"\xff":1}', "header: not readable"),
        (b"{}\t", "padded with spaces only"),
        (b"{} {}", "header: not readable"),
        (b'{"__metadata__":[]}', "expected an object of texts"),
        (b'{"__metadata__":{"a":1}}', "expected an object of texts"),
        (b"{}", "this is not a patch file"),
        (b'{"__metadata__":{"format":"pt"}}', "this is not a patch file"),
    ],
)
def test_a_bad_header_is_refused(header: bytes, message: str) -> None:
    error = refusal(join(header, b""))
    assert error.reason == "bad_header"
    assert re.search(message, str(error))


CHANGES: list[tuple[str, Callable[[Header], object], str]] = [
    ("unknown entry key", lambda h: h["kv"].update(extra=1), "nothing else"),
    ("missing entry key", lambda h: h["kv"].pop("shape"), "nothing else"),
    (
        "unknown dtype",
        lambda h: h["kv"].update(dtype="F64"),
        "dtype: expected one of BF16, F16, F32, I32, U8",
    ),
    ("dtype no text", lambda h: h["kv"].update(dtype=["BF16"]), "dtype: expected one of"),
    ("negative size", lambda h: h["kv"]["shape"].__setitem__(0, -2), "shape: expected 1 to 8 sizes"),
    ("size a bool", lambda h: h["kv"]["shape"].__setitem__(0, True), "shape: expected 1 to 8 sizes"),
    ("size a float", lambda h: h["kv"]["shape"].__setitem__(0, 2.0), "shape: expected 1 to 8 sizes"),
    ("no sizes", lambda h: h["kv"].update(shape=[]), "shape: expected 1 to 8 sizes"),
    (
        "overflowing size",
        lambda h: h["kv"].update(shape=[2**40, 2**40]),
        "expected 2417851639229258349412352 bytes",
    ),
    ("reversed offsets", lambda h: h["kv"]["data_offsets"].reverse(), "data_offsets: expected"),
    ("one offset", lambda h: h["kv"]["data_offsets"].pop(), "data_offsets: expected"),
    ("too many bytes", lambda h: h["kv"]["data_offsets"].__setitem__(1, 9999), "data_offsets give"),
    ("entry no object", lambda h: h.update(kv=3), "nothing else"),
    ("many tensors", lambda h: h.update({str(i): h["kv"] for i in range(40)}), "at most 16 tensors"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_bad_tensor_entry_is_refused(data: bytes, change: Callable[[Header], object], message: str) -> None:
    header, body = parts(data)
    change(header)
    error = refusal(join(header, body))
    assert error.reason == "bad_header"
    assert message in str(error)


def test_overlapping_tensors_are_refused(data: bytes) -> None:
    header, body = parts(data)
    begin, end = header["kv"]["data_offsets"]
    header["kv"]["data_offsets"] = [begin - 4, end - 4]
    assert "overlap" in str(refusal(join(header, body)))


def test_two_tensors_on_the_same_bytes_are_refused(data: bytes) -> None:
    header, body = parts(data)
    header["zz"] = dict(header["kv"])
    assert "overlap" in str(refusal(join(header, body)))


def test_a_hole_between_tensors_is_refused(data: bytes) -> None:
    header, body = parts(data)
    begin, end = header["kv"]["data_offsets"]
    header["kv"]["data_offsets"] = [begin + 4, end + 4]
    assert "4 unused bytes lie before" in str(
        refusal(join(header, body[:begin] + b"\0\0\0\0" + body[begin:]))
    )


def test_bytes_behind_the_last_tensor_are_refused(data: bytes) -> None:
    assert "bytes follow the last tensor" in str(refusal(data + b"\0"))


def test_a_missing_end_is_truncated(data: bytes) -> None:
    error = refusal(data[:-1])
    assert error.reason == "truncated"
    assert "cut off" in str(error)


def test_an_unknown_tensor_is_named(data: bytes) -> None:
    header, body = parts(data)
    header["weights"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    error = refusal(sealed(header, body + b"\0\0\0\0"))
    assert error.reason == "bad_tensor"
    assert "tensor 'weights': unknown name" in str(error)


def test_a_file_without_tensors_is_refused(data: bytes) -> None:
    header, _ = parts(data)
    error = refusal(sealed({"__metadata__": header["__metadata__"]}, b""))
    assert error.reason == "bad_tensor"
    assert "expected embeddings or kv, got none" in str(error)


def test_a_tensor_of_another_dtype_than_the_model_is_refused(data: bytes) -> None:
    header, body = parts(data)
    header["kv"]["dtype"] = "F16"
    assert "tensor kv: expected dtype BF16, got F16" in str(refusal(sealed(header, body)))


def test_a_tensor_of_another_shape_than_the_model_is_refused(data: bytes) -> None:
    header, body = parts(data)
    header["kv"]["shape"] = [2, 2, 3, 4, 2]
    assert "expected shape [2, 2, 3, 2, 4], got [2, 2, 3, 4, 2]" in str(refusal(sealed(header, body)))


@pytest.mark.parametrize("bits", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"], ids=["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_refused(data: bytes, bits: bytes) -> None:
    header, body = parts(data)
    error = refusal(sealed(header, body[:-2] + bits))
    assert error.reason == "bad_tensor"
    assert str(error) == "tensor kv: expected finite values, got NaN or infinity"


def manifest_of(header: Header) -> dict[str, Any]:
    return dict(json.loads(header["__metadata__"][MANIFEST_KEY]))


MANIFEST_CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], str, str]] = [
    ("unknown key", lambda m: m.update(foo=1), "bad_manifest", "unknown key 'foo'"),
    (
        "unknown inner key",
        lambda m: m["base_model"].update(x=1),
        "bad_manifest",
        "base_model: unknown key 'x'",
    ),
    ("missing key", lambda m: m.pop("origin"), "bad_manifest", "the key 'origin' is missing"),
    ("null", lambda m: m.update(license=None), "bad_manifest", "license: expected a text, got None"),
    (
        "newer version",
        lambda m: m.update(format_version=3, foo=1),
        "unsupported_version",
        "expected 1 or 2, got 3",
    ),
    ("version a text", lambda m: m.update(format_version="1"), "bad_manifest", "format_version: expected 1"),
    ("other kind", lambda m: m.update(kind="weights"), "bad_manifest", "kind: expected 'prefix'"),
    (
        "kind of another version",
        lambda m: m.update(kind="steering"),
        "bad_manifest",
        "kind: expected 'prefix'",
    ),
    ("bad name", lambda m: m.update(name="../../etc"), "bad_name", "manifest.name: expected"),
    ("reserved name", lambda m: m.update(name="none"), "bad_name", "reserved"),
    ("bad version", lambda m: m.update(version="1"), "bad_name", "manifest.version: expected a semantic"),
    ("zero tokens", lambda m: m.update(num_virtual_tokens=0), "bad_manifest", "an integer from 1 to 4096"),
    ("many tokens", lambda m: m.update(num_virtual_tokens=4097), "bad_manifest", "an integer from 1 to 4096"),
    ("tokens a bool", lambda m: m.update(num_virtual_tokens=True), "bad_manifest", "got True"),
    ("unknown method", lambda m: m.update(origin={"method": "magic"}), "bad_manifest", "origin.method"),
    ("bad digest", lambda m: m["base_model"].update(weights_digest="x"), "bad_manifest", "64 hexadecimal"),
    ("escape code", lambda m: m.update(changelog="\x1b[2J"), "bad_manifest", "printable"),
    ("two lines", lambda m: m.update(changelog="a\nb"), "bad_manifest", "one line"),
    ("text direction", lambda m: m.update(license="a\u202eb"), "bad_manifest", "printable"),
    ("bad supersedes", lambda m: m.update(supersedes="old"), "bad_manifest", "a version or a digest"),
    (
        "no components",
        lambda m: m.update(origin={"method": "compose"}),
        "bad_manifest",
        "'components' is missing",
    ),
    (
        "bad component",
        lambda m: m.update(origin={"method": "compose", "components": [{"name": "a"}, 3]}),
        "bad_manifest",
        "components[0]: expected an object of name, version and digest",
    ),
    ("too large", lambda m: m["origin"].update(text="x" * MAX_MANIFEST_BYTES), "too_large", "262144 bytes"),
]


@pytest.mark.parametrize(
    ("change", "reason", "message"), [c[1:] for c in MANIFEST_CHANGES], ids=[c[0] for c in MANIFEST_CHANGES]
)
def test_a_bad_manifest_is_refused(
    data: bytes, change: Callable[[dict[str, Any]], object], reason: str, message: str
) -> None:
    header, body = parts(data)
    manifest = manifest_of(header)
    change(manifest)
    header["__metadata__"][MANIFEST_KEY] = canonical_json(manifest)
    error = refusal(sealed(header, body))
    assert error.reason == reason
    assert message in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected an object, got list"),
        ("{", "Expecting"),
        ('{"format_version":1,"format_version":1}', "appears twice"),
        ('{"format_version": 1}', "not canonical JSON"),
        ('{"format_version":1.0}', "not canonical JSON"),
        ('{"b":1,"a":2}', "not canonical JSON"),
        ('{"a":"\\u0041"}', "not canonical JSON"),
        ('{"a":1e999}', "inf is no JSON number"),
        ('{"a":"\\ud800"}', "lone surrogate"),
        ("[" * 60_000, "nested too deeply"),
    ],
)
def test_a_manifest_text_that_is_not_canonical_is_refused(data: bytes, text: str, message: str) -> None:
    header, body = parts(data)
    header["__metadata__"][MANIFEST_KEY] = text
    error = refusal(sealed(header, body))
    assert error.reason == "bad_manifest"
    assert message in str(error)


def test_all_problems_are_found_at_once(data: bytes) -> None:
    header, body = parts(data)
    manifest = manifest_of(header)
    manifest.update(name="Bad Name", num_virtual_tokens="3", extra=1)
    manifest["base_model"]["dtype"] = "int8"
    header["__metadata__"][MANIFEST_KEY] = canonical_json(manifest)
    patch, problems = find_problems(join(header, body))
    assert patch is None
    assert [problem.reason for problem in problems] == ["bad_name"] + ["bad_manifest"] * 3 + [
        "digest_mismatch"
    ]


def test_a_wrong_stored_digest_is_refused_even_where_all_else_is_right(data: bytes) -> None:
    header, body = parts(data)
    header["__metadata__"][DIGEST_KEY] = "sha256:" + "0" * 64
    assert refusal(join(header, body)).reason == "digest_mismatch"
    header["__metadata__"][DIGEST_KEY] = "md5:1"
    assert refusal(join(header, body)).reason == "bad_header"
