"""The snippets of `examples/clients` print what they promise; only server, model and patch are put in."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]

SNIPPETS = Path(__file__).resolve().parents[3] / "examples" / "clients"
INTERPRETERS = {".py": [sys.executable], ".sh": ["sh"], ".mjs": ["node"]}


def run_snippet(name: str, folder: Path, yardstick: Any) -> str:
    source = (SNIPPETS / name).read_text(encoding="utf-8")
    for shown, real in (
        ("http://127.0.0.1:8000", yardstick.server.url),
        ("smollm2", yardstick.model),
        ("pirate", yardstick.name),
    ):
        assert shown in source
        source = source.replace(shown, real)
    script = folder / name
    script.write_text(source, encoding="utf-8")
    done = subprocess.run(
        [*INTERPRETERS[script.suffix], str(script)],
        cwd=folder,
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "path", [p for p in sorted(SNIPPETS.iterdir()) if p.suffix in {".py", ".sh"}], ids=lambda path: path.name
)
def test_the_snippet_prints_the_patched_answer(path: Path, yardstick: Any, tmp_path: Path) -> None:
    output = run_snippet(path.name, tmp_path, yardstick)

    assert yardstick.reference in output
    assert yardstick.patched in output


def test_the_snippet_for_node_prints_the_patched_answer(node_client: Path, yardstick: Any) -> None:
    output = run_snippet("openai_node.mjs", node_client, yardstick)

    assert output == f"{yardstick.reference} {yardstick.patched}\n"
