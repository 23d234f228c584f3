"""Rules on the words of pages, docstrings and messages: a newcomer reads them without stopping."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import PACKAGES, python_files, rule

#: What to write instead stands beside it.
BANNED = {
    r"be had": "be available; unavailable",
    r"nobody": "no one, no caller, not … by anyone",
    r"(?:go|goes|going|gone|went) on with": "continue",
    r"whom the server": "which callers the server trusts",
    r"clock that talks": "in constant time",
}
#: A docstring says what comes back ("Return …") or what happens, not what the function gives or tells.
_OPENING = re.compile(r"(?:Give|Tell|Say|Let)s?\b")

#: Packages whose docstrings and messages are held to the rules below.
SWEPT = (*PACKAGES, "deploy", "tools")
#: Text that a model is asked to read, and no reader of ours.
PROMPTS = {Path("bench/load/workloads.py")}

PAGES = ("*.md", "docs/**/*.md", "bench/*.md", "examples/*.md")


def banned_phrases(text: str) -> list[str]:
    line = " ".join(text.split())
    return [
        f"{match[0]!r}; write {better!r}"
        for phrase, better in BANNED.items()
        for match in re.finditer(rf"\b{phrase}\b", line, re.IGNORECASE)
    ]


def prose_of(page: str) -> str:
    """Return the page without code and without what is quoted."""
    text = re.sub(r"^ *```.*?^ *```|`[^`]*`", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r'"[^"|]*"', "", text)


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str()) as docstring), *_]:
                    yield docstring


@rule({"docs/a.md": 'A patch that cannot\nbe had is an error, `nobody` and "nobody" are none.\n'})
def pages_are_in_plain_words(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: {phrase}"
        for pattern in PAGES
        for path in sorted(root.glob(pattern))
        for phrase in banned_phrases(prose_of(path.read_text(encoding="utf-8")))
    ]


@rule({"bench/a.py": '"""A module."""\nraise ValueError("nobody is there")\n'})
def messages_are_in_plain_words(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: {phrase}"
        for path, tree in python_files(root, *SWEPT)
        if path not in PROMPTS
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for phrase in banned_phrases(node.value)
    ]


@rule({"bench/a.py": '"""A module."""\ndef f():\n    """Give a figure."""\n'})
def docstrings_begin_with_what_comes_back(root: Path) -> list[str]:
    return [
        f"{path}:{docstring.lineno}: begins with {opening[0]!r}"
        for path, tree in python_files(root, *SWEPT)
        for docstring in docstrings(tree)
        if (opening := _OPENING.match(str(docstring.value).strip()))
    ]
