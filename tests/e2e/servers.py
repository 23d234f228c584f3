"""Which server an end-to-end test uses. Each file of tests says it, with one or two of these names:

    pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]

| name | brought by | what it is |
| --- | --- | --- |
| demo | `shared_server` | the demo model in float32, with tools |
| tiny | `tiny_server` | the tiny model in float32, with vLLM's development routes |
| own | `start_module_server`, or a process | of the file's own; `why` says what no shared one has |
| none | | no server |

A shared server runs in one worker, which gets all files that use it. A test puts patches under names of its
own there, and compares metrics with what they were before.
"""

import ast
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest

#: Fixture -> the server that it brings.
FIXTURES = {"shared_server": "demo", "tiny_server": "tiny", "start_module_server": "own"}
NAMES = {*FIXTURES.values(), "none"}


def servers_of(item: pytest.Item) -> set[str]:
    """Return the names of servers that the marks of a test give."""
    return {name for mark in item.iter_markers("server") for name in mark.args}


def problems(items: Iterable[pytest.Item]) -> list[str]:
    """Return what is wrong with what end-to-end tests say of their servers."""
    found: dict[str, None] = {}
    for item in items:
        whys = [mark.kwargs.get("why") for mark in item.iter_markers("server") if "own" in mark.args]
        fixtures: Collection[str] = getattr(item, "fixturenames", ())
        if problem := problem_of(servers_of(item), fixtures, has_why=all(whys)):
            found[f"{item.path.name}: {problem}"] = None
    return list(found)


def problem_of(names: set[str], fixtures: Collection[str], *, has_why: bool = True) -> str | None:
    """Return what is wrong where a test names these servers and has these fixtures."""
    if not names or names - NAMES:
        return (
            f"pytest.mark.server: expected of {sorted(NAMES)}, got {sorted(names)}; see tests/e2e/servers.py"
        )
    if missing := {FIXTURES[name] for name in fixtures if name in FIXTURES} - names:
        return f"pytest.mark.server: expected {sorted(missing)} too, whose fixture is used"
    if "none" in names and len(names) > 1:
        return f"pytest.mark.server: expected no server beside 'none', got {sorted(names)}"
    if "own" in names and not has_why:
        return "pytest.mark.server: expected why='…' beside 'own': what has no shared server?"
    return None


def group_of(file: Path) -> str:
    """Return what has to run in one worker with a file of tests: all of a shared server, or the file alone.

    Read from the mark in the file's text: who hands out tests to workers has not imported it.
    """
    calls = [
        node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    marks = [call for call in calls if ast.unparse(call.func) == "pytest.mark.server"]
    names = {argument.value for mark in marks for argument in mark.args if isinstance(argument, ast.Constant)}
    shared = names & {"demo", "tiny"}
    return f"server {min(shared)}" if shared else str(file)
