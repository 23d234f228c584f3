"""The documentation is held to the code: commands, flags, links, error codes, metrics and make targets."""

import argparse
import ast
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import CollectorRegistry
from safetensors import safe_open

from server.cli import COMMANDS, main
from server.errors import ERROR_CODES
from server.metrics.patches import PatchMetrics

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/**/*.md", "deploy/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if "out" not in path.parts
)
CLI_PAGE = ROOT / "docs" / "cli.md"
SHELL_LANGUAGES = {"", "sh", "bash", "console", "shell", "text"}
MAX_COLUMNS = 100
MAX_README_DIGITS = 200
#: Pages that someone reads in one go; what is more goes to another page.
MAX_LINES = {"README.md": 110, "docs/code.md": 80, "docs/results.md": 100}
#: Written by a command.
NOT_WRAPPED = {"docs/cli.md", "docs/compatibility.md"}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose() -> str:
    """All that people wrote: everything but the generated page and the changelog."""
    written = [path for path in PAGES if path != CLI_PAGE and path.name != "CHANGELOG.md"]
    return "\n".join(path.read_text(encoding="utf-8") for path in written)


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cli_reference() -> ModuleType:
    return tool("cli_reference")


@pytest.fixture(scope="module")
def parsers(cli_reference: ModuleType) -> dict[str, argparse.ArgumentParser]:
    return {" ".join(words): parser for words, parser in cli_reference.parsers()}


def test_the_command_reference_is_what_the_commands_say(cli_reference: ModuleType) -> None:
    assert CLI_PAGE.read_text(encoding="utf-8") == cli_reference.reference(), "run `make docs`"


def test_every_flag_explains_itself(parsers: dict[str, argparse.ArgumentParser]) -> None:
    silent = [
        f"{command} {action.option_strings or action.dest}"
        for command, parser in parsers.items()
        for action in parser._actions
        if not action.help
    ]
    assert not silent, "\n".join(silent)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_used_somewhere_in_the_docs(command: str) -> None:
    assert re.search(rf"policypatch {command}\b", prose())


@pytest.mark.parametrize("code", sorted(ERROR_CODES))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in prose()


def test_the_table_of_metrics_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == tool("metrics_reference").with_table(page), "run `make docs`"


def test_every_metric_is_documented_and_none_is_invented() -> None:
    registry = CollectorRegistry()
    # Some are there only where a catalog is followed.
    PatchMetrics(registry).fleet.model = "model"
    defined = {family.name for family in registry.collect()}
    documented = {base_name(name) for name in re.findall(r"\bpolicy_patch_[a-z_]+[a-z]\b", prose())}
    assert documented == defined


def base_name(series: str) -> str:
    """The metric's name without the suffix that the exposition format gives its series."""
    return re.sub(r"_(total|bucket|sum|count)$", "", series)


def fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield match[1].strip(), match[2]


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each `policypatch` call in the page's shell blocks, up to a pipe or redirection."""
    for language, block in fenced_blocks(text):
        if language not in SHELL_LANGUAGES:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(policypatch .*)", line)
            if match:
                call = re.split(r"\s(?:\||&&|&|>|2>|#|;)", match[1])[0]
                yield shlex.split(re.sub(r"\[[^\]]*\]", "", call))


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_documented_calls_use_flags_that_exist(
    path: Path, parsers: dict[str, argparse.ArgumentParser]
) -> None:
    unknown = [
        " ".join(words)
        for words in command_lines(path.read_text(encoding="utf-8"))
        if not call_is_known(words, parsers)
    ]
    assert not unknown, "\n".join(unknown)


def call_is_known(words: list[str], parsers: dict[str, argparse.ArgumentParser]) -> bool:
    if words[1].startswith("-"):
        return words[1] in {"--help", "--version"}
    if words[1] not in COMMANDS:
        return words[1] == "COMMAND"
    if words[1] == "serve":
        # What isn't ours is vLLM's to judge.
        return True
    parser = parsers.get(" ".join(words[:3]), parsers[" ".join(words[:2])])
    known = {option for action in parser._actions for option in action.option_strings}
    return {word.split("=")[0] for word in words if word.startswith("-")} <= known


def slug(heading: str) -> str:
    """The anchor that a Markdown heading gets."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)}


def broken_links(path: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_or_anchor_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Over there\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text("[a](b.md) [b](b.md#over-there) [c](c.md) [d](b.md#no-heading) `[e](f.md)` [g](#nowhere)")
    assert broken_links(page) == ["c.md", "b.md#no-heading", "#nowhere"]


def test_a_call_with_an_invented_flag_is_noticed(parsers: dict[str, argparse.ArgumentParser]) -> None:
    page = (
        "```sh\n$ HF=1 .venv/bin/policypatch demo-model D --dtype float32 \\\n  --turbo | tee --append\n```"
    )
    (words,) = command_lines(page)
    assert words[-1] == "--turbo"
    assert not call_is_known(words, parsers)
    assert call_is_known(words[:-1], parsers)


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    mentioned = set(re.findall(r"(?:`|^\s*(?:\$ )?)make ([a-z-]+)", prose(), re.MULTILINE))
    assert mentioned <= targets


def test_the_example_of_policy_explain_is_what_it_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    (example,) = (b for _, b in fenced_blocks(page) if b.startswith("$ policypatch policy explain"))
    call, _, printed = example.partition("\n")

    assert main(shlex.split(call)[2:]) == 1
    assert capsys.readouterr().out == printed


def digests_of_ready_patches() -> set[str]:
    digests = set()
    for path in (ROOT / "examples" / "patches").glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            digests.add(file.metadata()["policypatch.digest"])
    return digests


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_digests_on_a_page_are_those_of_the_ready_patches(page: str) -> None:
    shown = re.findall(r"sha256:[0-9a-f]+", (ROOT / page).read_text(encoding="utf-8"))
    ready = digests_of_ready_patches()
    assert shown
    assert [digest for digest in shown if not any(full.startswith(digest) for full in ready)] == []


def test_every_extra_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in code_spans(row)}
    assert set(project["optional-dependencies"]) <= rows


def test_the_readme_shows_how_to_start_in_its_first_twenty_lines() -> None:
    top = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:20])
    assert "make demo" in top or "policypatch serve" in top


def overlong_lines(text: str) -> list[str]:
    """Lines of prose beyond the right margin; code, tables and the targets of links don't count."""
    blank = re.sub(r"^ *```.*?^ *```", lambda match: "\n" * match[0].count("\n"), text, flags=re.M | re.S)
    return [
        f"line {number}: {len(shown)} columns"
        for number, line in enumerate(blank.splitlines(), 1)
        if len(shown := re.sub(r"\]\([^)]*\)", "]", line)) > MAX_COLUMNS
        if not line.startswith(("|", "    "))
    ]


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if page_id(path) not in NOT_WRAPPED and "results" not in path.parts],
    ids=page_id,
)
def test_prose_ends_at_the_right_margin(path: Path) -> None:
    assert overlong_lines(path.read_text(encoding="utf-8")) == []


def test_an_overlong_line_is_noticed() -> None:
    long = "word " * 21
    page = f"{long}\n```\n{long}\n```\n| {long} |\n[short](https://{'x' * 100})\n- {long}\n"
    assert overlong_lines(page) == ["line 1: 105 columns", "line 7: 107 columns"]


CODE_PAGE = ROOT / "docs" / "code.md"
OUR_FILE = re.compile(
    r"(?:server|patches|prefix_kernels|steering_kernels|bench|deploy|tests|tools)/[\w/-]*(?:/|\.py)"
)


def code_spans(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def files_that_are_not_there(text: str, root: Path) -> set[str]:
    return {span for span in code_spans(text) if OUR_FILE.fullmatch(span) and not (root / span).exists()}


def folders_without_a_word(text: str, root: Path) -> set[str]:
    folders = {
        f"{path.parent.relative_to(root)}/"
        for package in ("server", "patches")
        for path in (root / package).rglob("*.py")
    }
    return folders - code_spans(text) - {"server/"}


def test_the_page_about_the_code_names_every_folder() -> None:
    text = CODE_PAGE.read_text(encoding="utf-8")
    assert folders_without_a_word(text, ROOT) == set()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_files_of_ours_that_a_page_names_exist(path: Path) -> None:
    assert files_that_are_not_there(path.read_text(encoding="utf-8"), ROOT) == set()


def test_a_folder_left_out_and_a_file_that_is_gone_are_noticed(tmp_path: Path) -> None:
    for file in ("server/a/b.py", "patches/c/d.py", "patches/c/e/f.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    page = "`server/a/`, `patches/c/`: `server/a/b.py` and `patches/c/gone.py`, not `/v1/patches/`"
    assert folders_without_a_word(page, tmp_path) == {"patches/c/e/"}
    assert files_that_are_not_there(page, tmp_path) == {"patches/c/gone.py"}


@pytest.mark.parametrize("page", MAX_LINES)
def test_a_page_that_is_read_in_one_go_stays_short(page: str) -> None:
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= MAX_LINES[page]


def test_the_readme_is_no_table_of_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sum(character.isdigit() for character in text) <= MAX_README_DIGITS


def statements(source: str) -> list[str]:
    return [ast.dump(node) for node in ast.parse(source).body]


def curl_call(script: str) -> list[object]:
    """What the script's call of curl sends, and where to; how it prints the answer is left out."""
    words = shlex.split(script[script.index("curl ") :].replace("\\\n", " "))
    return [json.loads(word) if word.startswith("{") else word for word in words[2:]]


def without_space(source: str) -> str:
    return re.sub(r"\s", "", source)


def test_the_snippets_of_the_readme_are_those_that_the_tests_run() -> None:
    """The files of ``examples/clients`` are run against a real server; the README shows their beginnings."""
    top = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:60])
    snippets = dict(reversed(list(fenced_blocks(top))))
    clients = ROOT / "examples" / "clients"

    python = statements((clients / "openai_python.py").read_text(encoding="utf-8"))
    shown = statements(snippets["python"])
    assert shown == python[1 : 1 + len(shown)]
    node = without_space((clients / "openai_node.mjs").read_text(encoding="utf-8").partition("\n")[2])
    assert node.startswith(without_space(snippets["js"]))
    assert curl_call(snippets["sh"]) == curl_call((clients / "curl.sh").read_text(encoding="utf-8"))
