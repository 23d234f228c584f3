"""Typed reading of one JSON object that collects every mistake instead of stopping at the first.

A wrong field yields a harmless stand-in of the right type, so that reading can continue; the caller must
look at ``problems`` before using any value.
"""

import unicodedata
from collections.abc import Mapping, Sequence

from patches.canonical import JsonValue
from patches.names import is_digest

# The two format characters that ordinary words of several scripts need.
_JOINERS = "\u200c\u200d"

_NO_DIGEST = "sha256:" + 64 * "0"


def is_one_line(text: str) -> bool:
    """Return whether a terminal shows ``text`` as it is: no control or direction characters."""
    return not any(
        unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in _JOINERS
        for character in text
    )


class FieldReader:
    """Reads the fields of one object; made by ``read_manifest_text``, one for each object of a document."""

    def __init__(self, path: str, document: JsonValue, problems: list[str] | None = None) -> None:
        self._path = path
        self._document: Mapping[str, JsonValue] = document if isinstance(document, Mapping) else {}
        self._seen: set[str] = set()
        self._bad: set[str] = set()
        #: Shared with the readers of inner objects.
        self.problems: list[str] = [] if problems is None else problems

    def problem(self, key: str | None, expected: str, value: JsonValue) -> None:
        """Note that ``key``, or the whole object where it is ``None``, is not what was expected."""
        where = self._path if key is None else f"{self._path}.{key}"
        if key is not None:
            self._bad.add(key)
        self.problems.append(f"{where}: expected {expected}, got {_shown(value)}")

    def is_good(self, key: str) -> bool:
        """Return whether ``key`` was read without a problem so far."""
        return key not in self._bad

    def finish(self) -> None:
        """Name the keys that were not asked for."""
        for key in sorted(set(self._document) - self._seen):
            self.problems.append(f"{self._path}: unknown key {_shown(key)}")

    def free(self) -> Mapping[str, JsonValue]:
        """Return the object as it is."""
        return self._document

    def integer(self, key: str, minimum: int, maximum: int) -> int:
        """Read an integer within inclusive limits."""
        value, is_there = self._take(key)
        if is_there and (type(value) is not int or not minimum <= value <= maximum):
            expected = f"{minimum}" if minimum == maximum else f"an integer from {minimum} to {maximum}"
            self.problem(key, expected, value)
        return value if self.is_good(key) else minimum

    def optional_integer(self, key: str, minimum: int, maximum: int) -> int | None:
        """Take an integer, if the key is there."""
        return self.integer(key, minimum, maximum) if key in self._document else None

    def integers(self, key: str, minimum: int, maximum: int) -> Sequence[int]:
        """Read a list of integers, each within inclusive limits."""
        value, is_there = self._take(key)
        is_list = isinstance(value, list) and all(type(v) is int and minimum <= v <= maximum for v in value)
        if is_there and not is_list:
            self.problem(key, f"a list of integers from {minimum} to {maximum}", value)
        return value if self.is_good(key) else []

    def number(self, key: str, minimum: float, maximum: float) -> float:
        """Read a number within inclusive limits."""
        value, is_there = self._take(key)
        if is_there and (type(value) not in (int, float) or not minimum <= value <= maximum):
            self.problem(key, f"a number from {minimum:g} to {maximum:g}", value)
        return float(value) if self.is_good(key) else float(minimum)

    def boolean(self, key: str) -> bool:
        """Read true or false."""
        value, is_there = self._take(key)
        if is_there and not isinstance(value, bool):
            self.problem(key, "true or false", value)
        return value if self.is_good(key) else False

    def text(self, key: str) -> str:
        """Read a text."""
        value, is_there = self._take(key)
        if is_there and not isinstance(value, str):
            self.problem(key, "a text", value)
        return value if self.is_good(key) else ""

    def line(self, key: str, max_length: int) -> str:
        """Read a text of one line, not empty and without control characters."""
        value = self.text(key)
        if self.is_good(key) and not (0 < len(value) <= max_length and is_one_line(value)):
            self.problem(key, f"one line of 1 to {max_length} printable characters", value)
        return value

    def optional_line(self, key: str, max_length: int) -> str | None:
        """Read a line that may be left out."""
        return self.line(key, max_length) if key in self._document else None

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        """Read a text from a closed set."""
        value, is_there = self._take(key)
        if is_there and value not in allowed:
            self.problem(key, " or ".join(map(repr, allowed)), value)
        return value if self.is_good(key) else allowed[0]

    def digest(self, key: str) -> str:
        """Read a ``sha256:`` digest."""
        value, is_there = self._take(key)
        if is_there and not (isinstance(value, str) and is_digest(value)):
            self.problem(key, "sha256: and 64 hexadecimal digits", value)
        return value if self.is_good(key) else _NO_DIGEST

    def object(self, key: str) -> "FieldReader":
        """Read an inner object."""
        value, is_there = self._take(key)
        if is_there and not isinstance(value, Mapping):
            self.problem(key, "an object", value)
        return FieldReader(f"{self._path}.{key}", value, self.problems)

    def optional_object(self, key: str) -> "FieldReader | None":
        """Read an inner object that may be left out."""
        return self.object(key) if key in self._document else None

    def objects(self, key: str, minimum: int, maximum: int | None = None) -> list["FieldReader"]:
        """Read a list of at least ``minimum`` objects."""
        value, is_there = self._take(key)
        if is_there and not (isinstance(value, list) and minimum <= len(value) <= (maximum or len(value))):
            expected = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
            self.problem(key, f"a list of {expected} objects", value)
        if not self.is_good(key):
            return []
        return [FieldReader(f"{self._path}.{key}[{i}]", item, self.problems) for i, item in enumerate(value)]

    def _take(self, key: str) -> tuple[JsonValue, bool]:
        self._seen.add(key)
        if key in self._document:
            return self._document[key], True
        self._bad.add(key)
        self.problems.append(f"{self._path}: the key {key!r} is missing")
        return None, False


def _shown(value: JsonValue) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
