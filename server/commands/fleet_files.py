"""Reads what is to be published: patches with their signatures, a policy, public keys."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patches.errors import PatchError
from patches.format import decode_patch, read_patch_bytes
from patches.signing.keys import load_public_key
from patches.signing.signature import read_claim, read_signature, signature_path
from server.commands.errors import CommandError
from server.commands.patch_arguments import of_file
from server.commands.policy_file import read_policy
from server.fleet.changes import Added
from server.fleet.document import VersionEntry


@dataclass(slots=True)
class Files:
    """Files that were read, and where they go."""

    #: Target -> content.
    contents: dict[str, bytes] = field(default_factory=dict)
    added: list[Added] = field(default_factory=list)
    policy: str | None = None
    keys: list[str] = field(default_factory=list)


def files_of(patches: Sequence[Path], policy: Path | None, keys: Sequence[Path]) -> Files:
    """Read everything, as a server would.

    Raises:
        CommandError: A file is none of its kind, or two are the same version.
    """
    files = Files()
    for path in patches:
        _add_patch(files, path)
    if policy is not None:
        data = read_policy(policy, "--policy").data
        # A name of its own for each content, since no target is ever written over.
        files.policy = _add(files, "policies", policy.name, data)
    for path in keys:
        try:
            load_public_key(path)
        except PatchError as error:
            raise CommandError(f"--trusted-key: {error}") from error
        files.keys.append(_add(files, "keys", path.name, path.read_bytes()))
    return files


def _add_patch(files: Files, path: Path) -> None:
    try:
        data = read_patch_bytes(path)
        patch = decode_patch(data)
        signature = read_signature(path) if signature_path(path).exists() else None
        if signature is not None and read_claim(signature).statement.digest != patch.digest:
            raise CommandError(f"{signature_path(path)}: signs another content; sign {path.name} again")
    except PatchError as error:
        raise CommandError(of_file(path, error)) from error
    name, version = patch.manifest.name, patch.manifest.version
    if any((one.name, one.version) == (name, version) for one in files.added):
        raise CommandError(f"{path}: {name}@{version} is among the files twice")
    target = f"patches/{name}-{version}.safetensors"
    files.contents[target] = data
    entry = VersionEntry(patch.digest, target)
    if signature is not None:
        signed = _add(files, "signatures", f"{name}-{version}.sig", signature)
        entry = VersionEntry(patch.digest, target, signed)
    files.added.append(Added(name, version, entry))


def _add(files: Files, folder: str, name: str, data: bytes) -> str:
    target = f"{folder}/{hashlib.sha256(data).hexdigest()[:16]}/{name}"
    files.contents[target] = data
    return target
