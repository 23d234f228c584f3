"""Under a log of JSON, each line that reaches the standard streams is JSON, whoever wrote it."""

import json
import os
import subprocess
import sys

from patches.terminal import one_line
from server.engine.line_pipe import as_json

#: Writes as a server does: by its streams, past them, and by a child that outlives the context.
PROGRAM = """\
import os, subprocess, sys
from server.engine.line_writer import streams_beside
with streams_beside(True, is_first=True):
    print('{"message": "ours"}')
    os.write(1, b"in C\\n")
    os.write(2, b"[W1130] careful\\n")
    os.write(2, b"Loading:  50% Completed | 1/2 [00:01<00:01]\\rLoading: 100% [00:02<00:00]\\r\\n")
    subprocess.run([sys.executable, "-c", "print('a child'); print(chr(123) + '\\"a\\": 1' + chr(125))"])
    os.write(1, b'{"half": \\n\\xff\\n')
    sleeper = subprocess.Popen(["sleep", "60"])
    os.write(1, b"no end")
print("after it")
sleeper.kill()
"""


def test_whatever_is_written_past_the_log_becomes_json_and_nothing_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=120, check=True)
    *out, last = done.stdout.decode().splitlines()
    assert last == "after it"
    objects = [json.loads(line) for line in out]
    assert {"message": "ours"} in objects
    assert {"a": 1} in objects
    messages = [one["message"] for one in objects if "asctime" in one]
    assert messages[:2] == ["in C", "a child"]
    assert '{"half":' in messages
    levels = {one["message"]: one["levelname"] for one in map(json.loads, done.stderr.splitlines())}
    assert levels == {
        "[W1130] careful": "WARNING",
        "Loading:  50% Completed | 1/2 [00:01<00:01]": "INFO",
        "Loading: 100% [00:02<00:00]": "INFO",
    }


def test_a_line_that_only_looks_like_json_is_put_into_an_object() -> None:
    for line in ("{not json}", "{" * 100_000, "bold\u2028", '"text"', "1"):
        shown = as_json(line, "stdout")
        assert json.loads(shown)["message"] == one_line(line)
        assert shown.splitlines() == [shown]


def test_the_files_are_the_streams_again_afterwards() -> None:
    before = os.fstat(1).st_ino
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os\nfrom server.engine.line_writer import streams_beside\nbefore = os.fstat(1)\n"
            "with streams_beside(True, is_first=True):\n    assert os.fstat(1) != before\n"
            "assert os.fstat(1).st_ino == before.st_ino",
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert (done.stdout, done.stderr, before) == (b"", b"", os.fstat(1).st_ino)
