"""What of vLLM's inner surface this project uses, and whether another release still has it as it was.

    python -m tools.vllm_surface vllm-0.33.0-....whl        # against the release that is installed
    python -m tools.vllm_surface --list                     # only what is used
    python -m tools.vllm_surface --package transformers transformers-5.20.0-....whl

Three things are compared, without importing either release: whether what we import, override or name by a
dotted path is still there (also behind a re-export); the parameters of functions and classes, and the fields
of data classes, among it; and what mypy says of our code with one release's sources and with the other's.
Exit status: 0 nothing has changed, 1 something has, 2 the wheel can't be read.
"""

import argparse
import ast
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import griffe

ROOT = Path(__file__).resolve().parents[1]

#: Folders whose code may import the package.
_FOLDERS = ("server", "prefix_kernels", "steering_kernels", "patches", "bench")

_MYPY_CONFIG = """\
[mypy]
ignore_missing_imports = True
follow_imports = skip
[mypy-{package}.*]
follow_imports = silent
ignore_errors = True
[mypy-server.*,patches.*,prefix_kernels.*,steering_kernels.*,bench.*]
follow_imports = normal
"""


@dataclass(frozen=True, order=True)
class Use:
    """One name of the package, and where our code uses it."""

    #: Dotted, from the package on; of a method that is overridden ``Class.method``.
    path: str
    where: str
    is_override: bool = False


@dataclass(frozen=True, order=True)
class Change:
    """A name that another release lacks, or has in another form."""

    path: str
    text: str
    #: Where our code uses it.
    places: tuple[str, ...]


def uses_of(files: Iterable[tuple[str, str]], package: str) -> Iterator[Use]:
    """Yield what ``files``, pairs of a place and a source text, use of ``package``."""
    for place, source in files:
        tree = ast.parse(source)
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            where = f"{place}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.ImportFrom(module=str(module)) if f"{module}.".startswith(f"{package}."):
                    for alias in node.names:
                        names[alias.asname or alias.name] = f"{module}.{alias.name}"
                        yield Use(f"{module}.{alias.name}", where)
                case ast.Import():
                    for alias in node.names:
                        if f"{alias.name}.".startswith(f"{package}."):
                            yield Use(alias.name, where)
                case ast.Constant(value=str(text)) if re.fullmatch(rf"{package}(\.\w+)+", text):
                    yield Use(text, where)
        yield from _overrides(tree, place, names)


def _overrides(tree: ast.AST, place: str, names: dict[str, str]) -> Iterator[Use]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for base in node.bases:
            if not isinstance(base, ast.Name) or base.id not in names:
                continue
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    path = f"{names[base.id]}.{method.name}"
                    yield Use(path, f"{place}:{method.lineno}", is_override=True)


class Release:
    """The sources of one release, below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, griffe.Module | None] = {}

    def find(self, path: str, seen: frozenset[str] = frozenset()) -> "griffe.Object | None":
        """Return what ``path`` names, wherever it is defined; ``None`` where there is nothing."""
        if path in seen:
            return None
        seen |= {path}
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            module = self._module(".".join(parts[:length]))
            if module is not None:
                return self._member(module, parts[length:], seen)
        return None

    def _member(
        self, owner: "griffe.Object", names: Sequence[str], seen: frozenset[str]
    ) -> "griffe.Object | None":
        if not names:
            return owner
        member = owner.members.get(names[0])
        if member is None and owner.is_class:
            return self._inherited(owner, names, seen)
        if member is None:
            return None
        if member.is_alias:
            target = ".".join([member.target_path, *names[1:]])  # type: ignore[union-attr]
            return self.find(target, seen)
        return self._member(member, names[1:], seen)  # type: ignore[arg-type]

    def _inherited(
        self, owner: "griffe.Object", names: Sequence[str], seen: frozenset[str]
    ) -> "griffe.Object | None":
        for base in owner.bases:  # type: ignore[attr-defined]
            path = getattr(base, "canonical_path", None) or str(base)
            found = self.find(".".join([path, *names]), seen)
            if found is not None:
                return found
        return None

    def _module(self, name: str) -> "griffe.Module | None":
        if name not in self._modules:
            self._modules[name] = self._visited(name)
        return self._modules[name]

    def _visited(self, name: str) -> "griffe.Module | None":
        import griffe

        stem = self.root.joinpath(*name.split("."))
        for path in (stem / "__init__.py", stem.with_suffix(".py")):
            if path.is_file():
                return griffe.visit(name, filepath=path, code=path.read_text(encoding="utf-8"))
        return None


def form_of(found: "griffe.Object") -> tuple[str, ...]:
    """Return what a caller has to know: parameters of a function, fields of a class; without types."""
    if found.is_function:
        return _parameters(found)
    if found.is_class:
        made = found.members.get("__init__")
        if made is not None and made.is_function:
            return _parameters(made)
        return tuple(n for n, m in found.members.items() if m.is_attribute and not n.startswith("_"))
    return (str(found.kind.value),)


def _parameters(function: "griffe.Object | griffe.Alias") -> tuple[str, ...]:
    marks = {"variadic positional": "*", "variadic keyword": "**"}
    shown = []
    is_keyword_only = False
    for parameter in function.parameters:  # type: ignore[union-attr]
        kind = parameter.kind.value if parameter.kind is not None else ""
        if kind == "keyword-only" and not is_keyword_only:
            shown.append("*")
        is_keyword_only = kind in ("keyword-only", "variadic positional")
        has_default = parameter.default is not None and kind not in marks
        shown.append(f"{marks.get(kind, '')}{parameter.name}{'=…' if has_default else ''}")
    return tuple(shown)


def changes(uses: Iterable[Use], old: Release, new: Release) -> list[Change]:
    """List what ``new`` lacks or has in another form, of what is in ``old``."""
    places: dict[tuple[str, bool], list[str]] = {}
    for use in sorted(set(uses)):
        places.setdefault((use.path, use.is_override), []).append(use.where)
    found = []
    for (path, is_override), where in places.items():
        before, after = old.find(path), new.find(path)
        # Where the old one has nothing, a method of ours overrides nothing, or the name is made at run time.
        if before is None:
            continue
        if after is None:
            text = "is gone, so that what overrides it is never called" if is_override else "is gone"
            found.append(Change(path, text, tuple(where)))
        elif form_of(before) != form_of(after):
            found.append(Change(path, _difference(form_of(before), form_of(after)), tuple(where)))
    return found


def _difference(before: Sequence[str], after: Sequence[str]) -> str:
    lost = [f"-{name}" for name in before if name not in after]
    won = [f"+{name}" for name in after if name not in before]
    return ", ".join([*lost, *won]) or f"other order: {', '.join(after)}"


def type_errors(folder: Path, package: str, release: Release) -> set[str]:
    """Return what mypy says of the code in ``folder`` with the sources of a release, without line numbers."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "mypy.ini"
        config.write_text(_MYPY_CONFIG.format(package=package), encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--config-file", str(config)]
        command += ["--cache-dir", str(Path(scratch) / "cache"), str(folder.relative_to(ROOT))]
        environment = {**os.environ, "MYPYPATH": str(ROOT)}
        if release.root not in map(Path, sys.path):
            # In front of what is installed.
            environment["MYPYPATH"] += f"{os.pathsep}{release.root}"
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if run.returncode not in (0, 1):
            raise OSError(f"mypy: {run.stderr.strip() or run.stdout.strip()}")
    return {re.sub(r":\d+: ", ": ", line) for line in run.stdout.splitlines() if ": error: " in line}


def _sources(package: str) -> list[tuple[str, str]]:
    paths = (path for folder in _FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    texts = ((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths)
    return [(place, text) for place, text in texts if package in text]


def _installed(package: str) -> Release:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise OSError(f"{package}: it is not installed, so there is nothing to compare with")
    return Release(Path(spec.origin).parents[1])


def _unpacked(wheel: Path, package: str, folder: Path) -> Release:
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.startswith(f"{package}/")]
            members = [name for name in inside if name.endswith((".py", ".typed"))]
            if not members:
                raise OSError(f"{wheel}: expected a wheel of {package}, found no {package}/*.py in it")
            archive.extractall(folder, members)
    except zipfile.BadZipFile as error:
        raise OSError(f"{wheel}: {error}") from error
    return Release(folder)


def compare(wheel: Path, package: str) -> tuple[list[Change], list[str]]:
    """Compare the installed release with that of a wheel.

    Returns:
        What has changed of what we use, and what mypy says with the other release alone.

    Raises:
        OSError: A release can't be read, or mypy can't run.
    """
    old = _installed(package)
    with tempfile.TemporaryDirectory() as folder:
        new = _unpacked(wheel, package, Path(folder))
        changed = changes(uses_of(_sources(package), package), old, new)
        checked = ROOT / ("server/engine" if package == "vllm" else "patches")
        errors = type_errors(checked, package, new) - type_errors(checked, package, old)
    return changed, sorted(errors)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what has changed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.vllm_surface",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("wheel", type=Path, nargs="?", help="the other release")
    parser.add_argument("--package", default="vllm", help="which package it is a release of (default: vllm)")
    parser.add_argument("--list", action="store_true", help="list what is used, and compare nothing")
    args = parser.parse_args(argv)
    if args.list:
        for use in sorted(set(uses_of(_sources(args.package), args.package))):
            print(f"{use.path}  {use.where}{'  overridden' if use.is_override else ''}")
        return 0
    if args.wheel is None:
        parser.error("expected a wheel, or --list")
    try:
        changed, errors = compare(args.wheel, args.package)
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    for change in changed:
        print(f"{change.path}: {change.text}\n    used in {', '.join(change.places)}")
    for text in errors:
        print(f"mypy: {text}")
    print(f"{len(changed)} of the names that we use have changed; mypy has {len(errors)} errors more")
    return 1 if changed or errors else 0


if __name__ == "__main__":
    sys.exit(main())
