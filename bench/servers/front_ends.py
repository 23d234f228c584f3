"""Whole servers, ours and vLLM's own, whose engine core computes nothing (``instant_executor``).

API process and engine core are what they are in production, and so is all that runs in them, but the model.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.servers.catalog_front import link_patches
from bench.servers.launch import EngineOptions, ours_server, plain_server
from bench.servers.patch_set import PatchFile, make_patch_set
from bench.servers.processes import ServerSpec

ADMIN_KEY = "the-benchmark-knows-this-key"
NUM_KEYS = 1000
#: Of the caller in the middle of the file.
CALLER_KEY = f"key-{NUM_KEYS // 2}"
#: The patch that the canary is about, its version and that of the canary.
CANARY = ("p-0", "1.0.0", "2.0.0")


@dataclass(frozen=True)
class Kind:
    """One kind of server of ours.

    Attributes:
        num_patches: how many are in its folder; ``None``: as many as the others have.
        flags: makes what its flags name in the folder of the run.
        canary: what a canary sticks to; empty for no canary.
    """

    num_patches: int | None = None
    flags: Callable[[Path], Sequence[str]] = lambda folder: ()
    canary: str = ""


def _with_policy(folder: Path) -> Sequence[str]:
    path = folder / "policy.yaml"
    digests = [hashlib.sha256(f"key-{i}".encode()).hexdigest() for i in range(NUM_KEYS)]
    keys = [f"  - {{name: caller-{i}, sha256: {sha}, allow: all}}" for i, sha in enumerate(digests)]
    path.write_text("\n".join(["version: 1", "keys:", *keys, ""]))
    return ["--policy", str(path)]


def _with_admin(folder: Path) -> Sequence[str]:
    path = folder / "admin-keys"
    path.touch(mode=0o600)
    path.write_text(f"bench:{ADMIN_KEY}\n")
    return ["--admin-key-file", str(path)]


#: Servers of ours -> what they are started with.
OURS = {
    "ours": Kind(),
    "one": Kind(num_patches=1),
    "many": Kind(num_patches=1000),
    "keys": Kind(flags=_with_policy),
    "audit": Kind(flags=lambda folder: ["--audit-log", str(folder / "audit.jsonl")]),
    "canary": Kind(flags=_with_admin, canary="header:X-User"),
    "canary-user": Kind(flags=_with_admin, canary="user"),
}


def instant(engine: EngineOptions, step_s: float) -> EngineOptions:
    """Return options for servers that compute nothing, whose tokens come ``step_s`` apart."""
    # The module of the executor can't be imported without vLLM.
    executor = "bench.servers.instant_executor.InstantExecutor"
    flags = ["--distributed-executor-backend", executor, "--num-gpu-blocks-override", "8192"]
    return replace(
        engine,
        extra_arguments=(*engine.extra_arguments, *flags),
        extra_environment=(*engine.extra_environment, f"POLICYPATCH_BENCH_STEP_S={step_s}"),
    )


def make_patches(model: str, folder: Path, servers: Sequence[str], num_patches: int) -> list[PatchFile]:
    """Make all patches that these servers have.

    Raises:
        BenchError: they could not be made.
    """
    count = max([num_patches, *(OURS[name].num_patches or 0 for name in servers if name in OURS)])
    made = make_patch_set(model, folder, count=count, num_tokens=48, dtype="bfloat16")
    if any(OURS[name].canary for name in servers if name in OURS):
        make_patch_set(model, folder, count=1, num_tokens=48, dtype="bfloat16", seed=count, version=CANARY[2])
    return made


def server_spec(
    name: str, engine: EngineOptions, patches: Sequence[PatchFile], num_patches: int, folder: Path
) -> ServerSpec:
    """Describe one of the servers, and make what it is started with."""
    if name not in OURS:
        return plain_server(engine, folder, name=name)
    kind, served = OURS[name], folder / f"patches-{name}"
    link_patches(patches[: kind.num_patches or num_patches], served)
    if kind.canary:
        (second,) = patches[0].path.parent.glob(f"{CANARY[0]}-{CANARY[2]}*")
        (served / second.name).symlink_to(second.resolve())
    spec = ours_server(engine, served, folder)
    # Patches stay in host memory, and the first use of one is no different from the others.
    flags = ["--composition", "joined", *kind.flags(folder)]
    return replace(spec, name=name, log_path=folder / f"{name}.log", command=[*spec.command, *flags])


def canary_orders(name: str) -> Sequence[tuple[str, Mapping[str, object]]]:
    """Return the admin calls, path and body, that begin the canary of a server; none where it has none."""
    kind = OURS.get(name)
    if kind is None or not kind.canary:
        return ()
    patch, active, tried = CANARY
    path = f"/v1/patches/{patch}"
    return (
        (f"{path}/activate", {"version": active}),
        (f"{path}/canary", {"version": tried, "share": 0.5, "key": kind.canary}),
    )
