"""A start that is broken off ends, also where the exception that should end it gets lost."""

import subprocess
import sys
from pathlib import Path

import psutil

PROGRAM = """
import subprocess, sys, time
from server.engine import ending

ending._END_S = 0.2
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
ending.end_soon()
time.sleep(60)
"""


def test_a_start_that_does_not_end_by_itself_is_ended_with_its_children() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 130
    assert not psutil.pid_exists(int(done.stdout))
