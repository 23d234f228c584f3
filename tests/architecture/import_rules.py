"""Rules on imports: which package, room and module may know which other."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.architecture.source import (
    KERNELS,
    PACKAGES,
    imported_modules,
    imported_names,
    imports,
    module_level,
    modules_of,
    python_files,
    room_of,
    rule,
)

#: package -> packages of this repository that it may import.
ALLOWED = {
    "patches": {"patches", "prefix_kernels"},
    **{package: {package} for package in KERNELS},
    "server": {"server", "patches", *KERNELS},
    "bench": {"bench", "server", "patches", *KERNELS},
    # Beside the product: only tools and tests import it.
    "deploy": {"deploy"},
    "tools": {"tools", "deploy", "bench", "server", "patches", *KERNELS},
    "tests": {"tests", "tools", "deploy", "bench", "server", "patches", *KERNELS},
}
#: package -> its rooms, from the top floor down. A room is a folder, or a module beside the folders. A module
#: imports from its own room and from the floors below; two rooms of one floor don't know each other.
LAYERS: dict[str, tuple[set[str], ...]] = {
    "server": (
        {"__main__"},
        {"cli"},
        {"commands"},
        {"engine"},
        {"app"},
        {"routes"},
        {"request", "frontends", "fleet"},
        {"policy", "admin"},
        {"catalog"},
        {"memory"},
        {"trust", "metrics"},
        {"versions"},
        {"demo"},
        {"errors", "audit", "options", "watcher"},
    ),
    "bench": (
        # The questions, a module each, and those that take a folder.
        {
            "catalog",
            "compose",
            "cross_check",
            "fidelity",
            "files",
            "fleet",
            "frontend",
            "gpu_session",
            "inject",
            "memory",
            "overflow",
            "overhead",
            "scale",
            "scrape",
            "soak",
            "start",
            "steering",
            "steer_layer",
            "swap",
        },
        {"hostile"},
        {"run"},
        {"report"},
        {"servers"},
        {"load"},
        {"errors"},
    ),
}
#: package -> how many modules may stand beside its folders, without its __init__ and __main__.
MAX_ROOT_MODULES = {"server": 6}
#: Never imported as a side effect of importing a module of ours.
HEAVY = ("vllm", "triton", "transformers", "peft")


@rule({"prefix_kernels/slots.py": "def f():\n    from patches import format\n"})
def packages_import_only_what_they_may(root: Path) -> list[str]:
    ours = {*ALLOWED}
    return [
        f"{path}:{line}: {path.parts[0]} imports {module}"
        for path, tree in python_files(root)
        for line, module in imports(tree)
        if (top := module.split(".")[0]) in ours and top not in ALLOWED[path.parts[0]]
    ]


@rule(
    {
        "server/catalog/catalog.py": "def f():\n    from server.request import gate\n",
        "server/request/gate.py": "from server.catalog import catalog\n",
    }
)
def imports_run_downwards(root: Path) -> list[str]:
    violations = []
    for package, layers in LAYERS.items():
        floor = {room: i for i, rooms in enumerate(layers) for room in rooms}
        modules = modules_of(root, package)
        for module, tree in modules.items():
            if (room := room_of(module)) is None:
                continue
            if room not in floor:
                violations.append(f"{module}: {package}/{room} is on no floor of LAYERS")
                continue
            for imported in imported_modules(tree, modules):
                below = room_of(imported)
                if below not in (None, room) and floor.get(below, -1) <= floor[room]:
                    violations.append(f"{module} imports {imported}, which is not below it")
    return violations


@rule({f"server/{name}.py": "" for name in ("__main__", *"abcdefg")})
def few_modules_stand_in_the_hall(root: Path) -> list[str]:
    found = {
        package: [path.stem for path in (root / package).glob("*.py") if not path.stem.startswith("__")]
        for package in MAX_ROOT_MODULES
    }
    return [
        f"{package}: {len(names)} modules beside its folders: {sorted(names)}"
        for package, names in found.items()
        if len(names) > MAX_ROOT_MODULES[package]
    ]


@rule(
    {
        "server/policy/a.py": "if TYPE_CHECKING:\n    from server.policy import b\n",
        "server/policy/b.py": "from server.policy.a import x\n",
    }
)
def no_imports_run_in_a_circle(root: Path) -> list[str]:
    modules = modules_of(root, *PACKAGES)
    graph = {name: set(imported_modules(tree, modules)) - {name} for name, tree in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


#: What vLLM loads into its engine core, in place of what runs a model.
_LOADED_BY_VLLM = Path("bench/servers/instant_executor.py")


@rule({"bench/servers/fake.py": "def f():\n    import vllm.config\n"})
def vllm_is_imported_only_by_the_engine(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, *PACKAGES, "tools")
        if path.parts[:2] != ("server", "engine") and path != _LOADED_BY_VLLM
        for line, module in imports(tree)
        if module.split(".")[0] == "vllm"
    ]


@rule(
    {
        "bench/__init__.py": '"""Benchmarks. ``servers.launch`` alone needs the server."""\n',
        "bench/servers/launch.py": "def f():\n    import server.cli\n",
        "bench/swap.py": "from server import errors\n",
    }
)
def bench_names_the_modules_that_need_the_server(root: Path) -> list[str]:
    """The package's docstring names them: every dotted name there is one, and no other module is."""
    modules = modules_of(root, "bench")
    if "bench" not in modules:
        return []
    need = {
        name.removeprefix("bench.")
        for name, tree in modules.items()
        if any(module.split(".")[0] == "server" for _, module in imports(tree))
    }
    named = set(re.findall(r"``(\w+\.\w+)``", ast.get_docstring(modules["bench"]) or ""))
    return [f"bench/__init__.py: names {name}, which needs no server" for name in sorted(named - need)] + [
        f"bench.{name}: imports the server, and bench/__init__.py does not say so"
        for name in sorted(need - named)
    ]


@rule({"steering_kernels/layout.py": "import numpy as np\n"})
def kernels_need_only_torch(root: Path) -> list[str]:
    allowed = {*sys.stdlib_module_names, "torch", "triton", *KERNELS}
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, *KERNELS)
        for line, module in imports(tree)
        if module.split(".")[0] not in allowed
    ]


@rule({"prefix_kernels/dispatch.py": "def f():\n    import triton\n"})
def triton_is_imported_only_by_triton_modules(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, *PACKAGES, "tools")
        if not (path.parts[0] in KERNELS and "triton" in path.stem)
        for line, module in imports(tree)
        if module.split(".")[0] == "triton"
    ]


@rule({"server/app.py": "from steering_kernels import triton_ops\n"})
def triton_modules_are_imported_lazily(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module} when the module is imported"
        for path, tree in python_files(root, *PACKAGES)
        for node in module_level(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line, module in imported_names(node)
        if module.split(".")[0] in KERNELS and "triton" in module
    ]


@rule({"server/app.py": "from .errors import PolicyPatchError\n"})
def imports_are_absolute(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: relative import"
        for path, tree in python_files(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]


@rule({"patches/store.py": "import pickle\n"})
def unpickling_is_never_used(root: Path) -> list[str]:
    return [
        f"{path}:{line}: imports {module}"
        for path, tree in python_files(root, "patches")
        for line, module in imports(tree)
        if module.split(".")[0] in {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    ]


@rule(
    {
        "transformers/__init__.py": "",
        "server/__init__.py": "",
        "server/app.py": "import transformers\n",
    }
)
def importing_a_module_loads_nothing_heavy(root: Path) -> list[str]:
    """One fresh interpreter imports them all; the first after which something heavy is loaded is blamed."""
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path, _ in python_files(root, "patches", *KERNELS, "server")
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
