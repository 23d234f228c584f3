"""Reads a checkout's sources for the rules, and collects the rules.

A rule is a function from a checkout's root to a list of violations. It stands beside the files of a small
checkout that breaks it, so that ``tests/test_architecture.py`` can see that it notices.
"""

import ast
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

#: The tensor code, a package for each kind of patch.
KERNELS = ("prefix_kernels", "steering_kernels")
PACKAGES = ("server", *KERNELS, "patches", "bench")
CODE = (*PACKAGES, "deploy", "tests", "tools")

Check = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Rule:
    """A rule, and the files of a checkout that breaks it once."""

    check: Check
    violation: dict[str, str]


RULES: dict[str, Rule] = {}


def rule(violation: dict[str, str]) -> Callable[[Check], Check]:
    """Collect a rule under its function's name."""

    def collect(check: Check) -> Check:
        RULES[check.__name__] = Rule(check, violation)
        return check

    return collect


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


def imported_names(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    yield from ((node.lineno, prefix + alias.name) for alias in node.names)


def modules_of(root: Path, *packages: str) -> dict[str, ast.Module]:
    """Dotted name -> tree of every module."""
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): tree
        for path, tree in python_files(root, *packages)
    }


def imported_modules(tree: ast.AST, modules: Container[str]) -> Iterator[str]:
    """Yield those of ``modules`` that the tree imports, inside functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                # `from server import errors` names a module, `from server.errors import X` what it holds.
                name = f"{node.module}.{alias.name}"
                if (module := name if name in modules else node.module) in modules:
                    yield module


def room_of(module: str) -> str | None:
    """Return the room of a dotted module; None for a package itself, which holds nothing but its version."""
    return parts[1] if len(parts := module.split(".")) > 1 else None
