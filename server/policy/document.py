"""YAML as a policy file may use it: mappings, lists and texts, each with its place. Nothing else.

Built from the parser's events, so that no object, alias or merge key of YAML ever comes to life: anchors,
aliases, tags, directives, several documents, block texts and repeated keys are refused, as is a file that is
too large or nested too deeply. A value is the text that stands there; what it means is the reader's business,
so ``no`` is never a boolean and ``1.10`` never a number.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from server.policy.errors import Place, PolicyFileError, Problem

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 8

#: libyaml's parser where PyYAML was built with it: many times faster, same events.
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar as it was written, without its quotes."""

    place: Place
    text: str
    is_quoted: bool


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: Place
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping; keys are unique."""

    place: Place
    fields: tuple[tuple[Text, "Node"], ...]


Node = Text | Items | Fields


def parse_document(data: bytes) -> Node:
    """Parse the one document of a file.

    Raises:
        PolicyFileError: It is too large, no UTF-8, no YAML, or uses what a policy file may not.
    """
    start = Place(1, 1)
    if len(data) > MAX_FILE_BYTES:
        _refuse(start, f"expected at most {MAX_FILE_BYTES} bytes, got {len(data)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(Place(line, 1), "expected UTF-8, got other bytes")
    try:
        return _Builder(text).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(mark) if mark is not None else start
        _refuse(place, f"no YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _refuse(Place(line, 1), "a character that YAML does not allow")
    except yaml.YAMLError as error:
        _refuse(start, f"no YAML: {error}")


class _Builder:
    def __init__(self, text: str) -> None:
        self._loader = _LOADER(text)

    def document(self) -> Node:
        try:
            self._next(yaml.StreamStartEvent)
            if isinstance(self._loader.peek_event(), yaml.StreamEndEvent):
                _refuse(Place(1, 1), "the file is empty; the least that a policy holds is `version: 1`")
            start = self._next(yaml.DocumentStartEvent)
            if start.version or start.tags:
                _refuse(_place(start.start_mark), "a policy file may not hold YAML directives")
            node = self._node(1)
            self._next(yaml.DocumentEndEvent)
            end = self._loader.get_event()
            if not isinstance(end, yaml.StreamEndEvent):
                _refuse(_place(end.start_mark), "expected one YAML document, got a second")
            return node
        finally:
            self._loader.dispose()

    def _next(self, kind: type[yaml.Event]) -> Any:
        event = self._loader.get_event()
        assert isinstance(event, kind), f"the YAML parser gave {event} in place of {kind}"
        return event

    def _node(self, depth: int) -> Node:
        event = self._loader.get_event()
        place = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            _refuse(place, f"*{event.anchor}: a policy file may not use YAML aliases; write the value out")
        if event.anchor is not None:
            _refuse(place, f"&{event.anchor}: a policy file may not use YAML anchors; write the value out")
        if event.tag is not None:
            _refuse(place, f"{event.tag}: a policy file may not use YAML tags")
        if depth > MAX_DEPTH:
            _refuse(place, f"expected at most {MAX_DEPTH} levels of nesting")
        if isinstance(event, yaml.ScalarEvent):
            if event.style in ("|", ">"):
                _refuse(place, "expected a text in one line, got a block of lines")
            return Text(place, event.value, event.style in ("'", '"'))
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(place, self._items(depth))
        return Fields(place, self._fields(depth))

    def _items(self, depth: int) -> tuple[Node, ...]:
        items = []
        while not isinstance(self._loader.peek_event(), yaml.SequenceEndEvent):
            items.append(self._node(depth + 1))
        self._loader.get_event()
        return tuple(items)

    def _fields(self, depth: int) -> tuple[tuple[Text, Node], ...]:
        found: dict[str, tuple[Text, Node]] = {}
        while not isinstance(self._loader.peek_event(), yaml.MappingEndEvent):
            key = self._node(depth + 1)
            if not isinstance(key, Text):
                _refuse(key.place, "expected a text as key")
            if key.text in found:
                before = found[key.text][0].place
                _refuse(key.place, f"{key.text[:64]}: stands in {before} already")
            found[key.text] = key, self._node(depth + 1)
        self._loader.get_event()
        return tuple(found.values())


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


def _refuse(place: Place, message: str) -> NoReturn:
    raise PolicyFileError([Problem(place, message)])
