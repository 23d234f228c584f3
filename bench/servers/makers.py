"""Runs a program of this repository that makes files, in a process of its own.

Such programs load torch or transformers; a benchmark stays without them.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from bench.errors import BenchError

_TIMEOUT_S = 1800


def run_maker(what: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run ``python -m`` with ``arguments``; return the last line of its stdout.

    Args:
        what: names it in errors.
        arguments: a module, and its arguments.
        environment: added to this process's; no model hub is asked where there is none.

    Raises:
        BenchError: it failed, or took too long; the message ends with what it said.
    """
    variables = os.environ | (environment if environment is not None else {"HF_HUB_OFFLINE": "1"})
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            env=variables,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{what}: not done after {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-20:])
        raise BenchError(f"{what}: ended with status {done.returncode}\n{said}")
    return done.stdout.rstrip().rpartition("\n")[2]
