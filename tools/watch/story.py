"""What happens to the patches of a server that is watched: its folder, its keys, an operator's orders."""

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from patches.format import Patch, make_patch, read_patch, write_patch
from patches.signing.keys import generate_keys, load_private_key
from patches.signing.signature import sign_statement, signature_path
from patches.signing.statement import make_statement
from tools.watch.processes import WatchFailed

_SIGNER = "release"
_OPERATOR = "alice"
_LOAD_TIMEOUT_S = 120.0


class Story:
    """A patch folder of its own with signed copies, and what is done with it."""

    def __init__(self, patches: Path, folder: Path) -> None:
        """Sign a copy of each patch.

        Args:
            patches: Where the patches lie.
            folder: For copies, keys and state.
        """
        self.key = secrets.token_hex(16)
        #: What the server watches.
        self.folder = folder / "patches"
        self._control = folder
        self.folder.mkdir()
        generate_keys(folder, _SIGNER)
        (folder / "trusted").mkdir()
        (folder / f"{_SIGNER}.pub").rename(folder / "trusted" / f"{_SIGNER}.pub")
        keys = folder / "admin-keys"
        keys.touch(mode=0o600)
        keys.write_text(f"{_OPERATOR}:{self.key}\n", encoding="utf-8")
        found = [read_patch(path) for path in sorted(patches.glob("*.safetensors"))]
        if not found:
            raise WatchFailed(f"--patches: expected a folder with patches, got {patches}; make demo has some")
        self._first, *_ = found
        for patch in found:
            self._install(patch)
        self._names = sorted({patch.manifest.name for patch in found})
        name = self._first.manifest.name
        last = found[-1].manifest
        new = _next(self._first.manifest.version)
        rules = {"max_error_rate": 0.05, "max_first_token_s": 5, "promote_after_s": 3600}
        if getattr(self._first.manifest.body, "condition", None) is not None:
            rules["min_condition_met"] = 0.01
        #: ``(share of the time, what is done then to the server at a URL)``, in order.
        self._steps: list[tuple[float, Callable[[str], None]]] = [
            (0.15, lambda url: self._roll_out(url, _with_version(self._first, new))),
            (0.30, lambda url: self._order(url, name, "rollback")),
            (0.40, lambda url: self._order(url, name, "canary", version=new, share=0.3, **rules)),
            (0.60, lambda _: self._forge()),
            (0.75, lambda url: self._order(url, last.name, "activate", version=last.version)),
        ]

    def flags(self) -> list[str]:
        """Return the flags of a server for it, but for ``--patches``."""
        flags = {
            "--admin-key-file": self._control / "admin-keys",
            "--trusted-keys": self._control / "trusted",
            "--state": self._control / "state",
        }
        return [str(word) for flag in flags.items() for word in flag]

    def names(self) -> list[str]:
        """Return what can be asked for."""
        return self._names

    def choice(self) -> dict[str, str]:
        """Return what a person would choose in the dashboards to see what happened."""
        return {"instance": ".*", "patch": self._first.manifest.name, "version": ".*", "window": "5m"}

    def tell(self, url: str, share: float) -> None:
        """Do to the server at ``url`` what is due after ``share`` of the time."""
        while self._steps and self._steps[0][0] <= share:
            self._steps.pop(0)[1](url)

    def _install(self, patch: Patch) -> None:
        manifest = patch.manifest
        statement = make_statement(
            manifest.name,
            manifest.version,
            patch.digest,
            minimum_version=None,
            signed_at=datetime.now(UTC).replace(microsecond=0),
        )
        name = f"{manifest.name}-{manifest.version}.safetensors"
        signed = sign_statement(statement, load_private_key(self._control / f"{_SIGNER}.key"))
        (self.folder / signature_path(Path(name))).write_bytes(signed)
        write_patch(patch, self.folder)

    def _forge(self) -> None:
        """Put a file into the folder beside a signature that no key made."""
        forged = make_patch(replace(self._first.manifest, name="forged"), self._first.tensors)
        path = self.folder / f"forged-{forged.manifest.version}.safetensors"
        signature_path(path).write_bytes(b"{}")
        write_patch(forged, self.folder)

    def _roll_out(self, url: str, patch: Patch) -> None:
        """Put a version into the folder, and wait until it is active."""
        self._install(patch)
        deadline = time.monotonic() + _LOAD_TIMEOUT_S
        while time.monotonic() < deadline:
            listing = httpx.get(f"{url}/v1/patches/{patch.manifest.name}").json()
            active = [one["version"] for one in listing["versions"] if one["state"] == "active"]
            if active == [patch.manifest.version]:
                return
            time.sleep(0.1)
        raise WatchFailed(f"{patch.manifest.name}: {patch.manifest.version} did not become active")

    def _order(self, url: str, name: str, action: str, **body: Any) -> None:
        call = f"{url}/v1/patches/{name}/{action}"
        answer = httpx.post(call, json=body, headers={"X-Admin-Key": self.key}, timeout=60)
        if answer.status_code != 200:
            raise WatchFailed(f"{action} of {name}: {answer.text}")


def _with_version(patch: Patch, version: str) -> Patch:
    return make_patch(replace(patch.manifest, version=version), patch.tensors)


def _next(version: str) -> str:
    major, minor, _ = version.split(".")
    return f"{major}.{int(minor) + 1}.0"
