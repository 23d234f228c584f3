"""Canonical JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patches.canonical import MAX_INTEGER, canonical_json, parse_json

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_reading_gives_back_what_was_written(value: Any) -> None:
    try:
        text = canonical_json(value)
    except ValueError:
        # A key may hold a lone surrogate here.
        return
    assert parse_json(text) == value
    assert canonical_json(parse_json(text)) == text


def test_keys_are_sorted_and_white_space_is_left_out() -> None:
    assert canonical_json({"b": [1, 2], "a": {"d": None, "c": True}}) == '{"a":{"c":true,"d":null},"b":[1,2]}'


def test_an_integral_float_equals_the_integer() -> None:
    assert canonical_json([10000.0, 0.5, -0.0]) == "[10000,0.5,0]"


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53, "\ud800", {"\ud800": 1}, {1: 2}, object()]
)
def test_a_value_without_canonical_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":1,"a":2}', "appears twice"),
        ("NaN", "NaN is no JSON number"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting"),
    ],
)
def test_what_is_no_strict_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_nesting_is_bounded() -> None:
    value: Any = 1
    for _ in range(20):
        value = [value]
    with pytest.raises(ValueError, match="levels deep"):
        canonical_json(value)
    assert json.loads(canonical_json(value[0][0][0][0]))
