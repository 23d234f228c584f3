"""Canonical JSON: one value, one text.

The text is UTF-8 with keys sorted by code point and no white space. A number with an integral value below
2**53 has no fraction (``10000``, never ``10000.0``); other numbers have the shortest form that reads back as
the same double. NaN, infinities, lone surrogates and repeated keys have no canonical text.

Law: ``parse_json(canonical_json(v)) == v``, and a text is canonical exactly where
``canonical_json(parse_json(t)) == t``.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

JsonValue: TypeAlias = Any

MAX_INTEGER = 2**53 - 1

#: Deeper values are refused: no manifest needs them, and recursion must stay bounded.
MAX_DEPTH = 16


def canonical_json(value: JsonValue) -> str:
    """Write ``value`` canonically.

    Raises:
        ValueError: The value has no canonical text; the message says which part.
    """
    return json.dumps(
        _normalize(value, 0), ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def parse_json(text: str | bytes) -> JsonValue:
    """Read JSON strictly.

    Raises:
        ValueError: Not JSON, a key twice in one object, NaN or an infinity, an integer that is too long,
            or too deeply nested.
    """
    try:
        return json.loads(
            text, object_pairs_hook=unique_keys, parse_int=short_integer, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """Return an object of JSON; an ``object_pairs_hook``.

    Raises:
        ValueError: A key is there twice, and readers differ on which one counts.
    """
    result: dict[str, JsonValue] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!r} appears twice in one object")
        result[key] = value
    return result


def short_integer(digits: str) -> int:
    """Return an integer of JSON; a ``parse_int``.

    Raises:
        ValueError: Python does not read one of so many digits, and says so in words for programmers.
    """
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"an integer of {len(digits)} digits is too long") from None


def _refuse_constant(constant: str) -> JsonValue:
    raise ValueError(f"{constant} is no JSON number")


def _normalize(value: JsonValue, depth: int) -> JsonValue:
    if isinstance(value, str):
        return _normalize_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _normalize_number(value)
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, list | tuple):
        return [_normalize(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"expected text as a key, got {key!r}")
        return {_normalize_text(key): _normalize(item, depth + 1) for key, item in value.items()}
    raise ValueError(f"expected a JSON value, got {type(value).__name__}")


def _normalize_text(text: str) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a text holds a lone surrogate, which UTF-8 can't write") from None
    return text


def _normalize_number(number: int | float) -> int | float:
    if isinstance(number, int):
        if abs(number) > MAX_INTEGER:
            raise ValueError("an integer is outside -(2**53 - 1) ... 2**53 - 1")
        return int(number)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no JSON number")
    return int(number) if number.is_integer() and abs(number) <= MAX_INTEGER else float(number)
