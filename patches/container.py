"""The safetensors container, read with bounds on everything before any byte is trusted.

Only the layout lives here: where each tensor's bytes are. What the tensors mean is ``patches.format``'s
matter. The file is: an unsigned 64-bit little-endian header length, the header (JSON), the tensors' bytes.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patches.canonical import JsonValue, canonical_json, parse_json
from patches.errors import PatchFormatError

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}

MAX_HEADER_BYTES = 1024 * 1024
MAX_NUM_TENSORS = 16

#: Bytes per element of the dtypes that a patch may use, by safetensors' names.
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the header. ``begin`` and ``end`` are byte offsets into the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Container:
    """A checked header: the entries cover the data without gap or overlap, in order of their place."""

    metadata: Mapping[str, str]
    entries: tuple[TensorEntry, ...]


def read_container(data: bytes | memoryview) -> Container:
    """Read and check the header of a safetensors file.

    Raises:
        PatchFormatError: With reason ``truncated``, ``not_safetensors``, ``too_large`` or ``bad_header``.
    """
    if len(data) < _LENGTH.size:
        raise PatchFormatError("truncated", f"file: expected at least {_LENGTH.size} bytes, got {len(data)}")
    (header_bytes,) = _LENGTH.unpack_from(data)
    data_start = _LENGTH.size + header_bytes
    if bytes(data[_LENGTH.size : _LENGTH.size + 1]) not in (b"{", b""):
        raise PatchFormatError(
            "not_safetensors", "file: expected a safetensors header, which starts with '{'"
        )
    if header_bytes > MAX_HEADER_BYTES:
        message = f"header: expected at most {MAX_HEADER_BYTES} bytes, the length field says {header_bytes}"
        raise PatchFormatError("too_large", message)
    if data_start > len(data):
        message = f"header: expected {header_bytes} bytes, the file ends after {len(data) - _LENGTH.size}"
        raise PatchFormatError("truncated", message)
    try:
        text = bytes(data[_LENGTH.size : data_start]).decode("utf-8").rstrip(" ")
        document = parse_json(text)
    except ValueError as error:
        raise PatchFormatError("bad_header", f"header: not readable as JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict) or not text.endswith("}"):
        raise PatchFormatError("bad_header", "header: expected one JSON object, padded with spaces only")
    metadata = _read_metadata(document.pop("__metadata__", {}))
    if len(document) > MAX_NUM_TENSORS:
        message = f"header: expected at most {MAX_NUM_TENSORS} tensors, got {len(document)}"
        raise PatchFormatError("bad_header", message)
    entries = [_read_entry(name, entry, data_start) for name, entry in document.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_cover(entries, data_start, len(data))
    return Container(metadata, tuple(entries))


def read_metadata(pread: Callable[[int, int], bytes]) -> Mapping[str, str]:
    """Read the metadata of a file and nothing after its header; what its tensors are is not looked at.

    Args:
        pread: Gives so many bytes from an offset on, fewer at the end of the file.

    Raises:
        PatchFormatError: There is none.
    """
    length = pread(_LENGTH.size, 0)
    header_bytes = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else 0
    if not 0 < header_bytes <= MAX_HEADER_BYTES:
        raise PatchFormatError("bad_header", f"header: expected 1 to {MAX_HEADER_BYTES} bytes")
    try:
        document = parse_json(pread(header_bytes, _LENGTH.size).decode("utf-8"))
    except ValueError as error:
        raise PatchFormatError("bad_header", f"header: not readable as JSON: {str(error)[:200]}") from None
    return _read_metadata(document.get("__metadata__", {}) if isinstance(document, dict) else {})


def write_header(metadata: Mapping[str, str], tensors: Sequence[tuple[str, str, Sequence[int]]]) -> bytes:
    """Write the length field and the header; the tensors' bytes MUST follow in the order given.

    The text is canonical JSON, so equal arguments give equal bytes on every machine.

    Args:
        metadata: Text by key.
        tensors: Name, safetensors dtype and shape of each tensor.
    """
    document: dict[str, JsonValue] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + ITEM_BYTES[dtype] * math.prod(shape)
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = canonical_json(document).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def _read_metadata(metadata: JsonValue) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise PatchFormatError("bad_header", "header.__metadata__: expected an object of texts")
    return metadata


def _read_entry(name: str, entry: JsonValue, data_start: int) -> TensorEntry:
    where = f"header[{ascii(name)[:80]}]"
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
        raise PatchFormatError("bad_header", f"{where}: expected dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        message = f"{where}.dtype: expected one of {', '.join(ITEM_BYTES)}, got {ascii(dtype)[:40]}"
        raise PatchFormatError("bad_header", message)
    if not _is_list_of_sizes(shape) or not 1 <= len(shape) <= 8:
        raise PatchFormatError("bad_header", f"{where}.shape: expected 1 to 8 sizes, got {ascii(shape)[:80]}")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        message = f"{where}.data_offsets: expected [begin, end], got {ascii(offsets)[:80]}"
        raise PatchFormatError("bad_header", message)
    needed, got = ITEM_BYTES[dtype] * math.prod(shape), offsets[1] - offsets[0]
    if needed != got:
        message = f"{where}: expected {needed} bytes for {dtype} {shape}, data_offsets give {got}"
        raise PatchFormatError("bad_header", message)
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_list_of_sizes(value: JsonValue) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**48 for size in value)


def _check_cover(entries: Sequence[TensorEntry], data_start: int, file_bytes: int) -> None:
    position = data_start
    for entry in entries:
        if entry.begin < position:
            message = f"tensor {ascii(entry.name)[:80]}: its bytes overlap those of another tensor"
            raise PatchFormatError("bad_header", message)
        if entry.begin > position:
            message = f"tensor {ascii(entry.name)[:80]}: {entry.begin - position} unused bytes lie before it"
            raise PatchFormatError("bad_header", message)
        position = entry.end
    if position > file_bytes:
        message = f"file: expected {position} bytes, got {file_bytes}; the tensors are cut off"
        raise PatchFormatError("truncated", message)
    if position < file_bytes:
        message = f"file: expected {position} bytes, got {file_bytes}; bytes follow the last tensor"
        raise PatchFormatError("bad_header", message)
