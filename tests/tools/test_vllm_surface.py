"""What another release has changed of what we use, told from two small trees of sources."""

import zipfile
from pathlib import Path
from typing import Any

from tools.vllm_surface import ROOT, Release, changes, main, type_errors, uses_of

OLD = {
    "vllm/__init__.py": "from vllm.engine import Engine as Engine\n",
    "vllm/base.py": "class Base:\n    def step(self, plan, *, limit=1):\n        pass\n",
    "vllm/engine.py": "from vllm.base import Base\n\nclass Engine(Base):\n    def reset(self): ...\n",
    "vllm/config.py": "class Config:\n    size: int = 1\n    depth: int = 2\n\ndef parse(text, *rest): ...\n",
}
OURS = """
from vllm import Engine
from vllm.config import Config, parse

WORKER = "vllm.engine.Engine"

class Patched(Engine):
    def step(self, plan, *, limit=1): ...
    def reset(self): ...
    def own(self): ...
"""
USES = list(uses_of([("ours.py", OURS)], "vllm"))


def release(folder: Path, **changed: str | None) -> Release:
    files: dict[str, Any] = OLD | {f"vllm/{name}.py": text for name, text in changed.items()}
    for name, text in files.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return Release(folder)


def said(tmp_path: Path, **changed: str | None) -> dict[str, str]:
    found = changes(USES, release(tmp_path / "old"), release(tmp_path / "new", **changed))
    return {change.path: change.text for change in found}


def test_imports_names_in_strings_and_overridden_methods_are_uses() -> None:
    assert {use.path for use in USES} == {
        "vllm.Engine",
        "vllm.config.Config",
        "vllm.config.parse",
        "vllm.engine.Engine",
        "vllm.Engine.step",
        "vllm.Engine.reset",
        "vllm.Engine.own",
    }


def test_equal_releases_have_no_changes_also_where_a_method_is_inherited_or_our_own(tmp_path: Path) -> None:
    assert said(tmp_path) == {}


def test_a_method_that_is_never_called_any_more_is_told(tmp_path: Path) -> None:
    """Nothing else would notice: the override stays, and no call reaches it."""
    base = OLD["vllm/base.py"].replace("def step", "def run_step")
    assert said(tmp_path, base=base) == {
        "vllm.Engine.step": "is gone, so that what overrides it is never called"
    }


def test_parameters_and_fields_that_come_and_go_are_told(tmp_path: Path) -> None:
    base = OLD["vllm/base.py"].replace("plan, *, limit=1", "plan, clock, *, limit=1")
    config = OLD["vllm/config.py"].replace("depth", "width").replace("*rest", "rest=()")
    assert said(tmp_path, base=base, config=config) == {
        "vllm.Engine.step": "+clock",
        "vllm.config.Config": "-depth, +width",
        "vllm.config.parse": "-*rest, +rest=…",
    }


def test_a_module_that_moved_is_told_and_what_is_exported_from_there_is_not(
    tmp_path: Path,
) -> None:
    moved = {"engine": None, "core": OLD["vllm/engine.py"], "__init__": "from vllm.core import Engine\n"}
    assert said(tmp_path, **moved) == {"vllm.engine.Engine": "is gone"}


def test_modules_that_import_each_other_come_to_an_end(tmp_path: Path) -> None:
    circle = {"__init__": "from vllm.engine import Engine\n", "engine": "from vllm import Engine\n"}
    assert said(tmp_path, **circle)["vllm.Engine"] == "is gone"


def test_mypy_reads_our_code_with_the_other_sources(tmp_path: Path) -> None:
    """Names that are there no more, and attributes of objects whose class nothing imports."""
    here = {"exceptions": "class Other: ...\n"}
    errors = type_errors(ROOT / "server/engine/client.py", "vllm", release(tmp_path, **here))
    assert any('"vllm.exceptions" has no attribute "VLLMValidationError"' in error for error in errors)


def test_what_is_no_wheel_of_the_package_is_refused(tmp_path: Path, capsys: Any) -> None:
    text, empty = tmp_path / "text.whl", tmp_path / "empty.whl"
    text.write_text("no archive")
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("other/__init__.py", "")
    for wheel, message in (
        (text, "not a zip file"),
        (empty, "expected a wheel of vllm"),
        (tmp_path / "no", "No such"),
    ):
        assert main([str(wheel)]) == 2
        assert message in capsys.readouterr().err


def test_it_lists_what_is_used(capsys: Any) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "vllm.v1.engine.async_llm.AsyncLLM.generate  server/engine/client.py" in listed
    assert "overridden" in listed
