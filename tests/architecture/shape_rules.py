"""Rules on the shape of files: their size, their names, what each must and must not hold."""

import ast
import re
from pathlib import Path

from tests.architecture.source import PACKAGES, python_files, rule

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
BANNED_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "manager.py", "misc.py"}


@rule({"server/app.py": "state = 0\ndef f():\n    global state\n    state = 1\n"})
def nothing_is_global(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: global {', '.join(node.names)}"
        for path, tree in python_files(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]


@rule({"bench/long.py": "x = 1\n" * (MAX_FILE_LINES + 1)})
def files_stay_small(root: Path) -> list[str]:
    lengths = {
        path: len((root / path).read_text(encoding="utf-8").splitlines()) for path, _ in python_files(root)
    }
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MAX_FILE_LINES]


@rule({"bench/long.py": "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES})
def functions_stay_small(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name} has {lines} lines"
        for path, tree in python_files(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


@rule({"server/utils.py": ""})
def files_are_named_for_a_concept(root: Path) -> list[str]:
    return [str(path) for path, _ in python_files(root) if path.name in BANNED_NAMES]


@rule({"server/app.py": "try:\n    x = 1\nexcept (OSError, Exception):\n    pass\n"})
def exceptions_are_never_swallowed(root: Path) -> list[str]:
    broad = {"Exception", "BaseException"}
    return [
        f"{path}:{node.lineno}: catches everything and does nothing"
        for path, tree in python_files(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None or bool(broad & {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)})
        )
        and all(isinstance(s, ast.Pass | ast.Continue) or is_ellipsis(s) for s in node.body)
    ]


@rule({"server/commands/verify.py": "def f(path):\n    print(path)\n"})
def commands_print_through_one_module(root: Path) -> list[str]:
    """Which escapes what could move a terminal's cursor: see ``server/commands/output.py``."""
    return [
        f"{path}:{node.lineno}: prints by itself; say() and complain() of server/commands/output.py escape"
        for path, tree in python_files(root, "server")
        if path.parts[1] == "commands" and path.name != "output.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def is_ellipsis(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and statement.value.value is Ellipsis
    )


@rule({"server/app.py": "x = 1\n"})
def every_module_says_what_it_is(root: Path) -> list[str]:
    return [
        f"{path}: no module docstring" for path, tree in python_files(root) if not ast.get_docstring(tree)
    ]


@rule({"tests/e2e/clients/test_new.py": '"""One."""\npytestmark = pytest.mark.e2e\n'})
def end_to_end_tests_say_which_server_they_use(root: Path) -> list[str]:
    """Whether what they say fits their fixtures is checked when they are collected: tests/e2e/servers.py."""
    return [
        f"{path}: no pytest.mark.server(...); tests/e2e/servers.py has the names"
        for path, _ in python_files(root, "tests")
        if path.parts[1:2] == ("e2e",) and path.name.startswith("test_")
        if "pytest.mark.server(" not in (root / path).read_text(encoding="utf-8")
    ]


@rule({"server/app.py": '"""Reads X-Policy-Patch."""\nNAME = b"x-policy-patch-digest"\n'})
def our_headers_are_named_in_one_file(root: Path) -> list[str]:
    """Docstrings aside."""
    violations = []
    for path, tree in python_files(root, *PACKAGES, "tools"):
        prose = {id(statement.value) for statement in ast.walk(tree) if isinstance(statement, ast.Expr)}
        violations += [
            f"{path}:{node.lineno}: spells X-Policy-Patch; patches/headers.py has the names"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and id(node) not in prose
            and "x-policy-patch" in str(node.value).lower()
            and path.parts != ("patches", "headers.py")
        ]
    return violations


@rule({"bench/app.py": "TABLE = (\n    1, 2, 3, 4, 5, 6,\n)  # fmt: skip\nf(\n    1, 2,\n)  # fmt: skip\n"})
def the_formatter_is_held_off_only_from_tables(root: Path) -> list[str]:
    """A table is a literal of at least six entries."""
    violations = []
    for path, tree in python_files(root):
        ends = {
            node.end_lineno or 0
            for node in ast.walk(tree)
            if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict)
            and len(node.keys if isinstance(node, ast.Dict) else node.elts) >= 6
        }
        lines = (root / path).read_text(encoding="utf-8").splitlines()
        violations += [
            f"{path}:{number}: fmt: skip, and no table"
            for number, line in enumerate(lines, 1)
            if line.endswith("# fmt: skip") and not ends & {number, number - 1}
        ]
    return violations


@rule({"tests/server/__init__.py": '"""Shadows the real package."""\n'})
def there_are_no_packages_under_tests(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in sorted((root / "tests").rglob("__init__.py"))]


@rule({"server/routes/chat.py": '"""Unreachable from a wheel."""\n'})
def packages_have_their_init(root: Path) -> list[str]:
    folders = {path.parent for path, _ in python_files(root, *PACKAGES, "deploy")}
    return [
        f"{folder}: no __init__.py"
        for folder in sorted(folders)
        if not (root / folder / "__init__.py").is_file()
    ]


@rule(
    {
        "bench/__init__.py": '"""Rooms.\n\n===  ===\n``run``  how\n===  ===\n"""\n',
        "bench/run/__init__.py": "",
        "bench/errors.py": "",
    }
)
def a_table_of_modules_lists_them_all(root: Path) -> list[str]:
    """Where a package's docstring has a table, its first column names each module and room beside it."""
    violations = []
    for path, tree in python_files(root, *PACKAGES, "deploy"):
        text = ast.get_docstring(tree) or ""
        if path.name != "__init__.py" or not re.search(r"^=+  =+$", text, re.MULTILINE):
            continue
        listed = set(re.findall(r"^``(\w+)``", text, re.MULTILINE))
        folder = root / path.parent
        there = {file.stem for file in folder.glob("*.py") if not file.stem.startswith("__")}
        there |= {file.parent.name for file in folder.glob("*/__init__.py")}
        violations += [f"{path}: does not list {name}" for name in sorted(there - listed)]
        gone = [name for name in sorted(listed - there) if not (folder / name).is_dir()]
        violations += [f"{path}: lists {name}, which is not there" for name in gone]
    return violations


@rule(
    {
        "server/__init__.py": '__version__ = "0.2.0"\n',
        "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n",
    }
)
def the_version_is_the_newest_in_the_changelog(root: Path) -> list[str]:
    init = (root / "server" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)
    headings = re.findall(
        r"^## \[(\d[^\]]*)\]", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    if version is None or not headings or headings[0] != version[1]:
        return [f"server/__init__.py says {version and version[1]}, CHANGELOG.md {headings[:1]}"]
    return []


#: Readers of what a run of ours wrote itself, or what a model's folder holds; all other text is people's.
READ_THEIR_OWN_FILES = {
    Path("patches/evaluate/log.py"),
    Path("server/demo/model.py"),
    Path("server/demo/wheel.py"),
    Path("patches/recipes/run.py"),
    Path("patches/tokenizer_digest.py"),
}


@rule({"patches/pairs/prompts.py": "def f(path):\n    return path.read_text('utf-8').split('\\n')\n"})
def text_of_people_is_read_by_one_reader(root: Path) -> list[str]:
    """``patches.text`` knows byte order marks and line ends; ``splitlines`` cuts inside JSON strings."""
    return [
        f"{path}:{node.lineno}: {node.func.attr}; use patches.text"
        for path, tree in python_files(root, "patches", "server")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr == "splitlines"
        or (node.func.attr == "read_text" and path not in READ_THEIR_OWN_FILES)
        if not ast.unparse(node.func.value).startswith("resources.files")
    ]
