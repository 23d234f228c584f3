"""Text for terminals and logs."""

import io
import sys

import pytest

from patches.terminal import escape_what_streams_lack, one_line, printable


def test_what_moves_a_cursor_or_turns_text_around_is_escaped() -> None:
    assert printable("a\x1b[2J\u202eb\r\udcff\nü") == "a\\x1b[2J\\u202eb\\r\\udcff\nü"


def test_one_line_has_no_line_break_of_any_kind() -> None:
    assert one_line("a\nb\u2028c\x85d") == r"a\nb\u2028c\x85d"


def test_a_stream_that_lacks_a_character_gets_its_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink, encoding="ascii"))
    escape_what_streams_lack()
    print("née ✓", flush=True)
    assert sink.getvalue() == b"n\\xe9e \\u2713\n"
