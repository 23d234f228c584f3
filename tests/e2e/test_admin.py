"""Operators and signatures on a real server: orders decide what answers; what nobody signed never does."""

import base64
import itertools
import json
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from patches.format import Patch, encode_patch, make_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from patches.signing.keys import generate_keys, load_private_key
from patches.signing.signature import sign_statement, signature_path
from patches.signing.statement import make_statement
from server.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="orders and signatures need keys")]

KEY = "alice-knows-this-key"
PROMPT = [200, 300, 17, 21]
MAX_MODEL_LEN = 2048


@dataclass
class AdminServer:
    """A server that demands signatures and takes alice's orders."""

    running: Any
    folder: Path

    def install(self, patch: Patch) -> None:
        """Put a patch and its signature into the folder."""
        name = f"{patch.manifest.name}-{patch.manifest.version}.safetensors"
        (self.running.patches / signature_path(Path(name))).write_bytes(self.signature(patch))
        self.running.install(patch)

    def signature(self, patch: Patch) -> bytes:
        statement = make_statement(
            patch.manifest.name,
            patch.manifest.version,
            patch.digest,
            minimum_version=None,
            signed_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
        )
        return sign_statement(statement, load_private_key(self.folder / "alice.key"))

    @property
    def socket(self) -> Path:
        """Where orders are taken."""
        return self.folder / "admin.sock"

    def call(self, method: str, path: str, key: str = KEY, **options: Any) -> httpx.Response:
        headers = {"X-Admin-Key": key, **options.pop("headers", {})}
        transport = httpx.HTTPTransport(uds=str(self.socket))
        with httpx.Client(base_url="http://admin", transport=transport, timeout=300) as client:
            return client.request(method, f"/v1/patches/{path}", headers=headers, **options)

    def patches(self, *words: str) -> int:
        """Run `policypatch patches` as an operator does."""
        key_file = self.folder / "alice-knows"
        key_file.write_text(KEY)
        return main(["patches", *words, "--url", f"unix:{self.socket}", "--key-file", str(key_file)])

    def answer(self, patch: str | None) -> tuple[str, list[int]]:
        """Which version answers, and how."""
        response = self.running.complete(PROMPT, patch=patch, return_token_ids=True)
        assert response.status_code == 200, response.text
        return response.headers["X-Policy-Patch"], response.json()["choices"][0]["token_ids"]

    def arm(self, patch: str, user: str) -> tuple[str, list[int], str]:
        """Which version answers a user, how, and as which arm."""
        body = {
            "model": "base",
            "prompt": PROMPT,
            "temperature": 0,
            "max_tokens": 16,
            "return_token_ids": True,
        }
        headers = {"X-Policy-Patch": patch, "X-User-Id": user}
        response = self.running.client.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        headers = response.headers
        return headers["X-Policy-Patch"], choice["token_ids"], headers["X-Policy-Patch-Arm"]


@pytest.fixture(scope="module")
def server(
    start_module_server: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AdminServer:
    folder = tmp_path_factory.mktemp("control")
    generate_keys(folder, "alice")
    (folder / "trusted").mkdir()
    (folder / "alice.pub").rename(folder / "trusted" / "alice.pub")
    (folder / "admin-keys").write_text(f"alice:{KEY}\n")
    (folder / "admin-keys").chmod(0o600)
    running = start_module_server(
        tiny_model,
        *("--dtype", "float32", "--max-model-len", str(MAX_MODEL_LEN)),
        *("--admin-key-file", str(folder / "admin-keys"), "--state", str(folder / "state")),
        *("--trusted-keys", str(folder / "trusted")),
        *("--admin-listen", f"unix:{folder / 'admin.sock'}"),
    )
    running.wait_ready()
    return AdminServer(running, folder)


@pytest.fixture(scope="module")
def make(tiny_patches: Any) -> Callable[..., Patch]:
    return tiny_patches.of_random_embeddings


def test_activate_and_roll_back_change_what_answers(server: AdminServer, make: Callable[..., Patch]) -> None:
    versions = [make("tone", 32, seed=i, version=f"1.{i}.0") for i in (0, 1)]
    for patch in versions:
        server.install(patch)
    by_version = {f"tone@1.{i}.0": server.answer(f"tone@1.{i}.0")[1] for i in (0, 1)}
    assert by_version["tone@1.0.0"] != by_version["tone@1.1.0"]
    assert server.answer("tone") == ("tone@1.1.0", by_version["tone@1.1.0"])
    answer = server.call("POST", "tone/activate", json={"version": "1.0.0"})
    assert answer.status_code == 200, answer.text
    assert server.answer("tone") == ("tone@1.0.0", by_version["tone@1.0.0"])
    answer = server.call("POST", "tone/rollback")
    assert answer.json()["active"]["version"] == "1.1.0", answer.text
    assert server.answer("tone") == ("tone@1.1.0", by_version["tone@1.1.0"])


def test_an_upload_answers_until_it_is_deleted(server: AdminServer, make: Callable[..., Patch]) -> None:
    patch = make("uploaded", 32, seed=2)
    data = encode_patch(patch.manifest, patch.tensors)
    octets = {"Content-Type": "application/octet-stream"}
    answer = server.call("PUT", "uploaded/1.0.0", content=data, headers=octets)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "patch_unsigned")
    octets["X-Policy-Patch-Signature"] = base64.b64encode(server.signature(patch)).decode()
    answer = server.call("PUT", "uploaded/1.0.0", content=data, headers=octets)
    assert answer.status_code == 201, answer.text
    assert answer.json()["versions"][0]["signer"] == "alice"
    assert server.answer("uploaded")[0] == "uploaded@1.0.0"
    # Many tokens: what a server finds all at once, having been kept from its work, it writes without waiting.
    num_tokens = MAX_MODEL_LEN - 32 - len(PROMPT)
    with server.running.unread_stream(PROMPT, patch="uploaded", num_tokens=num_tokens) as lines:
        answer = server.call("DELETE", "uploaded", params={"force": True})
        assert answer.json() == {"name": "uploaded", "active": None, "num_in_flight": 1, "is_forced": True}
        assert any("withdrawn" in line for line in lines)
    assert server.running.complete(PROMPT, patch="uploaded").status_code == 404
    server.running.wait_for_digest("uploaded", None)


def test_a_file_that_nobody_signed_never_answers(server: AdminServer, make: Callable[..., Patch]) -> None:
    server.running.install(make("forged", 32), wait=False)
    deadline = time.monotonic() + 60
    while not (listing := server.running.client.get("/v1/patches").json())["failures"]:
        assert time.monotonic() < deadline, "the file was never looked at"
        time.sleep(0.05)
    assert [(f["file"], f["code"]) for f in listing["failures"]] == [
        ("forged-1.0.0.safetensors", "patch_unsigned")
    ]
    assert server.running.complete(PROMPT, patch="forged").status_code == 404
    assert listing["trust"]["signers"] == ["alice"]


@pytest.mark.parametrize("key", ["", "mallory-guesses-a-key"])
def test_an_order_without_a_good_key_is_refused(server: AdminServer, key: str) -> None:
    answer = server.call("POST", "tone/rollback", key=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_admin_key")


def test_orders_are_taken_at_the_socket_alone_which_is_the_owners(server: AdminServer) -> None:
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
    answer = server.running.client.post("/v1/patches/tone/rollback", headers={"X-Admin-Key": KEY})
    assert answer.status_code in (404, 405)
    assert server.call("GET", "tone", key="").status_code == 401


def test_the_client_loads_tries_promotes_and_rolls_back(
    server: AdminServer, make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A canary on the real server, given by `policypatch patches`: and answers tell the arms apart."""
    old, new = (make("trial", 32, seed=10 + i, version=f"1.{i}.0") for i in (0, 1))
    server.install(old)
    path = tmp_path / "trial-1.1.0.safetensors"
    path.write_bytes(encode_patch(new.manifest, new.tensors))
    signature_path(path).write_bytes(server.signature(new))
    assert server.patches("load", str(path), "--hold") == 0
    by_version = {f"trial@1.{i}.0": server.answer(f"trial@1.{i}.0")[1] for i in (0, 1)}
    assert by_version["trial@1.0.0"] != by_version["trial@1.1.0"]
    assert server.answer("trial") == ("trial@1.0.0", by_version["trial@1.0.0"])

    assert server.patches("canary", "trial", "1.1.0", "--share", "0.5", "--key", "header:X-User-Id") == 0
    arms = {user: server.arm("trial", user) for user in map(str, range(24))}
    assert {(version, arm) for version, _, arm in arms.values()} == {
        ("trial@1.0.0", "stable"),
        ("trial@1.1.0", "canary"),
    }
    assert all(ids == by_version[version] for version, ids, _ in arms.values())
    # Each user stays with one version.
    assert {user: server.arm("trial", user) for user in arms} == arms

    assert server.patches("canary", "trial", "--promote") == 0
    assert server.answer("trial") == ("trial@1.1.0", by_version["trial@1.1.0"])
    assert server.patches("rollback", "trial", "--expect", "1.0.0") == 1
    assert "expected 1.1.0" in capsys.readouterr().err
    assert server.patches("rollback", "trial", "--expect", "1.1.0") == 0
    assert server.answer("trial") == ("trial@1.0.0", by_version["trial@1.0.0"])
    capsys.readouterr()
    assert server.patches("show", "trial", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [change["action"] for change in record["history"][:3]] == ["rollback", "promote", "canary"]
    assert {change["by"] for change in record["history"][:3]} == {"alice"}
    assert server.patches("rm", "trial", "--force") == 0
    assert server.running.complete(PROMPT, patch="trial").status_code == 404


def test_an_order_that_makes_no_sense_gets_our_error_object(server: AdminServer) -> None:
    answer = server.call("POST", "tone/activate", json={"version": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_admin_call")


def vector_met_above(threshold: float, version: str, model: Any) -> Patch:
    """A vector whose condition compares nothing but ``threshold`` with a score of about zero."""
    body = SteeringBody(
        Steering("residual", "relative", 0.3, tokens="answer"),
        Condition((Probe((0,), "mean", 0.0, threshold),)),
    )
    vector = torch.zeros(model.num_layers, model.hidden_size)
    vector[1:, 0] = 1
    manifest = Label("guard", version).manifest(model, body, {"method": "icv"})
    return make_patch(manifest, {"vector": vector, "probes": torch.full((1, model.hidden_size), 1e-6)})


def test_a_canary_whose_condition_is_met_much_more_often_is_aborted(
    server: AdminServer, tiny_patches: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_patches.model.base_model
    old, new = vector_met_above(1e4, "1.0.0", model), vector_met_above(-1e4, "1.1.0", model)
    server.install(old)
    path = tmp_path / "guard-1.1.0.safetensors"
    path.write_bytes(encode_patch(new.manifest, new.tensors))
    signature_path(path).write_bytes(server.signature(new))
    assert server.patches("load", str(path), "--hold") == 0
    order = ("canary", "guard", "1.1.0", "--share", "0.5", "--key", "header:X-User-Id", "--min-requests", "4")
    assert server.patches(*order, "--max-condition-change", "0.5") == 0
    arms = set()
    deadline = time.monotonic() + 120
    for user in itertools.count():
        assert time.monotonic() < deadline, "the rule never fired"
        arms.add(server.arm("guard", str(user))[0])
        if server.call("GET", "guard/history").json()["canary"] is None:
            break
    assert arms == {"guard@1.0.0", "guard@1.1.0"}
    capsys.readouterr()
    assert server.patches("show", "guard", "--json") == 0
    latest = json.loads(capsys.readouterr().out)["history"][0]
    assert (latest["action"], latest["by"], latest["active"]["version"]) == ("abort", "rules", "1.0.0")
    assert latest["reason"].startswith("the condition was met by 100.0% of ")
    assert latest["reason"].endswith("more than 50.0% apart")
    counted = {
        arm: server.running.metric(
            "policy_patch_arm_condition_total", patch="guard", arm=arm, outcome=outcome
        )
        for arm, outcome in (("canary", "met"), ("stable", "not_met"))
    }
    assert min(counted.values()) >= 4
