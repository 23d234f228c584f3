"""The rules of the house as checks: who may import whom, how large things get, what an import may load.

Each rule is a function from a checkout's root to a list of violations. The first test runs it over this
repository and expects none; the second one over a small checkout that breaks it and expects it to say so.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("server", "prefix_kernels", "patches", "bench")
CODE = (*PACKAGES, "tests", "tools")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
BANNED_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "manager.py", "misc.py"}

#: package -> packages of this repository that it may import.
ALLOWED = {
    "patches": {"patches", "prefix_kernels"},
    "prefix_kernels": {"prefix_kernels"},
    "server": {"server", "patches", "prefix_kernels"},
    "bench": {"bench", "server", "patches", "prefix_kernels"},
    "tools": {"tools", "bench", "server", "patches", "prefix_kernels"},
    "tests": {"tools", "bench", "server", "patches", "prefix_kernels"},
}
#: Never imported as a side effect of importing a module of ours.
HEAVY = ("vllm", "triton", "transformers", "peft")

Rule = Callable[[Path], list[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def python_files(root: Path, *packages: str) -> Iterator[tuple[Path, ast.Module]]:
    for package in packages or CODE:
        for path in sorted((root / package).rglob("*.py")):
            yield path.relative_to(root), ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import statement in the tree, also those inside functions, as (line, dotted module)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            # `from bench import x` may name a module: keep both.
            yield node.lineno, node.module


def module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs on import: function bodies are left out, `if TYPE_CHECKING` too."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


@rule
def packages_import_only_what_they_may(root: Path) -> list[str]:
    ours = {*ALLOWED}
    return [
        f"{path}:{line}: {path.parts[0]} imports {module}"
        for path, tree in python_files(root)
        for line, module in imports(tree)
        if (top := module.split(".")[0]) in ours and top not in ALLOWED[path.parts[0]]
    ]


@rule
def vllm_is_imported_only_by_the_engine(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, *PACKAGES, "tools")
        if path.parts[:2] != ("server", "engine")
        for line, module in imports(tree)
        if module.split(".")[0] == "vllm"
    ]


@rule
def kernels_need_only_torch(root: Path) -> list[str]:
    allowed = {*sys.stdlib_module_names, "torch", "triton", "prefix_kernels"}
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, "prefix_kernels")
        for line, module in imports(tree)
        if module.split(".")[0] not in allowed
    ]


@rule
def triton_is_imported_only_by_triton_modules(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, *PACKAGES, "tools")
        if not (path.parts[0] == "prefix_kernels" and "triton" in path.stem)
        for line, module in imports(tree)
        if module.split(".")[0] == "triton"
    ]


@rule
def triton_modules_are_imported_lazily(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module} when the module is imported"
        for path, tree in python_files(root, *PACKAGES)
        for node in module_level(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line, module in imported_names(node)
        if module.startswith("prefix_kernels.") and "triton" in module
    ]


def imported_names(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    yield from ((node.lineno, prefix + alias.name) for alias in node.names)


@rule
def imports_are_absolute(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: relative import"
        for path, tree in python_files(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]


@rule
def nothing_is_global(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: global {', '.join(node.names)}"
        for path, tree in python_files(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]


@rule
def files_stay_small(root: Path) -> list[str]:
    lengths = {
        path: len((root / path).read_text(encoding="utf-8").splitlines()) for path, _ in python_files(root)
    }
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MAX_FILE_LINES]


@rule
def functions_stay_small(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name} has {lines} lines"
        for path, tree in python_files(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


@rule
def files_are_named_for_a_concept(root: Path) -> list[str]:
    return [str(path) for path, _ in python_files(root) if path.name in BANNED_NAMES]


@rule
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


def is_ellipsis(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and statement.value.value is Ellipsis
    )


@rule
def every_module_says_what_it_is(root: Path) -> list[str]:
    return [
        f"{path}: no module docstring" for path, tree in python_files(root) if not ast.get_docstring(tree)
    ]


@rule
def there_are_no_packages_under_tests(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in sorted((root / "tests").rglob("__init__.py"))]


@rule
def packages_have_their_init(root: Path) -> list[str]:
    folders = {path.parent for path, _ in python_files(root, *PACKAGES)}
    return [
        f"{folder}: no __init__.py"
        for folder in sorted(folders)
        if not (root / folder / "__init__.py").is_file()
    ]


@rule
def unpickling_is_never_used(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, "patches")
        for line, module in imports(tree)
        if module.split(".")[0] in {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    ]


@rule
def the_version_is_the_newest_in_the_changelog(root: Path) -> list[str]:
    init = (root / "server" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)
    headings = re.findall(
        r"^## \[(\d[^\]]*)\]", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    if version is None or not headings or headings[0] != version[1]:
        return [f"server/__init__.py says {version and version[1]}, CHANGELOG.md {headings[:1]}"]
    return []


@rule
def importing_a_module_loads_nothing_heavy(root: Path) -> list[str]:
    """One fresh interpreter imports them all; the first after which something heavy is loaded is blamed."""
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path, _ in python_files(root, "patches", "prefix_kernels", "server")
        if path.parts[:2] != ("server", "engine") and path.name != "__main__.py" and "triton" not in path.stem
    ]
    script = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    for heavy in {HEAVY!r}:
        if heavy in sys.modules:
            print(name, "loads", heavy)
            sys.exit()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


#: rule -> the files of a checkout that breaks it.
VIOLATIONS: dict[str, dict[str, str]] = {
    "packages_import_only_what_they_may": {
        "prefix_kernels/slots.py": "def f():\n    from patches import format\n"
    },
    "vllm_is_imported_only_by_the_engine": {"server/app.py": "def f():\n    import vllm.config\n"},
    "kernels_need_only_torch": {"prefix_kernels/layout.py": "import numpy as np\n"},
    "triton_is_imported_only_by_triton_modules": {
        "prefix_kernels/dispatch.py": "def f():\n    import triton\n"
    },
    "triton_modules_are_imported_lazily": {"server/app.py": "from prefix_kernels import triton_ops\n"},
    "imports_are_absolute": {"server/app.py": "from .errors import PolicyPatchError\n"},
    "nothing_is_global": {"server/app.py": "state = 0\ndef f():\n    global state\n    state = 1\n"},
    "files_stay_small": {"bench/long.py": "x = 1\n" * (MAX_FILE_LINES + 1)},
    "functions_stay_small": {"bench/long.py": "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES},
    "files_are_named_for_a_concept": {"server/utils.py": ""},
    "exceptions_are_never_swallowed": {
        "server/app.py": "try:\n    x = 1\nexcept (OSError, Exception):\n    pass\n"
    },
    "every_module_says_what_it_is": {"server/app.py": "x = 1\n"},
    "there_are_no_packages_under_tests": {"tests/server/__init__.py": '"""Shadows the real package."""\n'},
    "packages_have_their_init": {"server/routes/chat.py": '"""Unreachable from a wheel."""\n'},
    "unpickling_is_never_used": {"patches/store.py": "import pickle\n"},
    "the_version_is_the_newest_in_the_changelog": {
        "server/__init__.py": '__version__ = "0.2.0"\n',
        "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n",
    },
    "importing_a_module_loads_nothing_heavy": {
        "transformers/__init__.py": "",
        "server/__init__.py": "",
        "server/app.py": "import transformers\n",
    },
}


@pytest.mark.parametrize("name", RULES)
def test_this_repository_keeps_the_rule(name: str) -> None:
    violations = RULES[name](ROOT)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("name", RULES)
def test_the_rule_notices_a_violation(name: str, tmp_path: Path) -> None:
    for file, text in VIOLATIONS[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert len(RULES[name](tmp_path)) == 1


def test_type_checking_imports_and_function_bodies_are_no_imports() -> None:
    tree = ast.parse(
        "if TYPE_CHECKING:\n    import vllm\nelse:\n    import a\ndef f():\n    import b\nimport c\n"
    )
    names = {
        name
        for node in module_level(tree)
        if isinstance(node, ast.Import)
        for _, name in imported_names(node)
    }
    assert names == {"a", "c"}
