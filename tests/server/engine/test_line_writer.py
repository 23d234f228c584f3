"""Log lines go to the disk beside whoever writes them, and none is lost in silence."""

import os
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from server.engine import line_writer
from server.engine.line_writer import LineWriter, streams_beside


def test_lines_arrive_in_order_and_the_end_waits_for_them(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as file, LineWriter(file) as writer:
        for number in range(1000):
            writer.write(f"line {number}\n")
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert text == "".join(f"line {number}\n" for number in range(1000))


def test_a_pipe_that_is_not_read_holds_up_no_writer_and_what_is_lost_is_counted_and_said() -> None:
    read, write = os.pipe()
    lost: Counter[str] = Counter()
    with os.fdopen(write, "w") as stream, LineWriter(stream, max_waiting=10) as writer:
        writer.count_with(lambda reason, number: lost.update({reason: number}))
        # More than pipe, batch and queue hold: this would never return where a write waited.
        for _ in range(1000):
            writer.write("x" * 1023 + "\n")
        assert lost["queue_full"] > 500
        received = bytearray()

        def drain() -> None:
            while chunk := os.read(read, 1 << 16):
                received.extend(chunk)

        reader = threading.Thread(target=drain)
        reader.start()
    reader.join(30)
    os.close(read)
    arrived = received.decode().splitlines()
    assert sum(line.startswith("x") for line in arrived) + lost["queue_full"] == 1000
    assert f'"num_lines": {lost["queue_full"]}' in "".join(line for line in arrived if line.startswith("{"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_counted_also_before_there_was_a_counter() -> None:
    lost: Counter[str] = Counter()
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as file, LineWriter(file) as writer:
        writer.write("one\n")
        while writer._uncounted != {"write_failed": 1}:
            threading.Event().wait(0.01)
        writer.count_with(lambda reason, number: lost.update({reason: number}))
        writer.write("two\n")
    assert lost == {"write_failed": 2}


def test_the_next_line_that_can_be_written_says_how_many_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "_gap", lambda number: f"{number} missing\n")
    with (tmp_path / "log").open("w", encoding="utf-8") as file, LineWriter(file) as writer:
        writer._lose("queue_full", 3)
        writer.write("next\n")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "3 missing\nnext\n"


def test_the_standard_streams_are_as_before_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():
        before = sys.stdout, sys.stderr
        with streams_beside(False) as none:
            assert (none, sys.stdout) == ((), before[0])
        with streams_beside(True) as (out, err):
            assert (sys.stdout, sys.stderr) == (out, err)
        assert (sys.stdout, sys.stderr) == before
