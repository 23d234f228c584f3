"""What `make demo` shows: the server's own lines and requests, and of vLLM and uvicorn what went wrong."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINES = """\
import json, logging, logging.config
from server.engine.logs import log_through_vllm
with open("examples/quiet-log.json") as file:
    logging.config.dictConfig(json.load(file))
log_through_vllm()
for name in ("vllm.engine", "uvicorn.error", "server.catalog.log"):
    logging.getLogger(name).info("%s at work", name)
    logging.getLogger(name).error("%s in trouble", name)
access = ("127.0.0.1:9", "POST", "/v1/completions", "1.1", 200)
logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', *access)
"""


def test_the_log_of_the_demo_is_quiet_but_hides_no_error_and_no_line_of_ours() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LINES], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "ERROR: vllm.engine in trouble",
        "ERROR: uvicorn.error in trouble",
        "INFO: server.catalog.log at work",
        "ERROR: server.catalog.log in trouble",
        'INFO: 127.0.0.1:9 "POST /v1/completions HTTP/1.1" 200 OK',
    ]
