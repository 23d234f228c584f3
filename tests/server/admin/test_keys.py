"""Who may give orders: the key file, the two headers, and what the audit log says about each try."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.admin.access import AdminAccess
from server.admin.keys import LOOK_AGAIN_S, AdminKeys, AdminKeysError
from server.app import install
from tests.server.stand import Stand

ALICE = "alice-knows-this-key"
BOT = "deploy-bot-knows-this"


def test_each_key_has_its_name(key_file: Path) -> None:
    keys = AdminKeys(key_file)
    assert [keys.name_of(key) for key in (ALICE, BOT)] == ["alice", "deploy-bot"]


@pytest.mark.parametrize("key", ["", "alice", ALICE[:-1], f"{ALICE}x", ALICE.upper(), "ä" * 20, "\udcff"])
def test_other_keys_are_nobodys(key_file: Path, key: str) -> None:
    assert AdminKeys(key_file).name_of(key) is None


def test_the_digest_of_a_key_stands_for_the_key_and_opens_nothing_itself(key_file: Path) -> None:
    digest = f"sha256:{hashlib.sha256(b'carol-knows-this-key').hexdigest()}"
    key_file.write_text(f"carol:{digest}\n")
    keys = AdminKeys(key_file)
    assert keys.name_of("carol-knows-this-key") == "carol"
    assert keys.name_of(digest) is None


def test_every_key_is_compared_however_early_one_fits(key_file: Path, monkeypatch: Any) -> None:
    """The time of an answer must not tell where in the file a key stands."""
    compared = []
    keys = AdminKeys(key_file)
    monkeypatch.setattr("server.admin.keys.hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
    keys.name_of(ALICE)
    assert len(compared) == 2


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o644, 0o666, 0o601])
def test_a_file_that_is_open_to_others_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(AdminKeysError, match="chmod 600"):
        AdminKeys(key_file)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440])
def test_a_private_file_is_read(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    assert AdminKeys(key_file).name_of(ALICE) == "alice"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got none"),
        ("# nobody\n", "got none"),
        ("alice\n", "1: expected name:key"),
        (f"al ice:{ALICE}\n", "1: expected name:key"),
        ("\nalice:short\n", "2: expected a key of at least 16"),
        ("alice:sha256:abc\n", "1: expected sha256: and 64"),
        (f"alice:{ALICE}\nbob:{ALICE}\n", "2: a name or a key is there twice"),
        (f"alice:{ALICE}\nalice:{BOT}\n", "2: a name or a key is there twice"),
        ("x" * 70_000, "at most"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_without_its_keys(key_file: Path, text: str, message: str) -> None:
    key_file.write_text(text)
    with pytest.raises(AdminKeysError, match=message) as caught:
        AdminKeys(key_file)
    assert ALICE not in str(caught.value)
    assert BOT not in str(caught.value)


def test_a_file_that_changes_is_read_again(key_file: Path) -> None:
    keys = AdminKeys(key_file)
    key_file.write_text(f"alice:{ALICE}\n")
    keys.refresh()
    assert keys.name_of(BOT) is None
    assert keys.name_of(ALICE) == "alice"


def test_a_look_at_the_file_is_due_when_the_last_one_is_old(key_file: Path, monkeypatch: Any) -> None:
    now_s = 1000.0
    monkeypatch.setattr("server.admin.keys.time.monotonic", lambda: now_s)
    keys = AdminKeys(key_file)
    assert not keys.is_due
    now_s += LOOK_AGAIN_S
    assert keys.is_due
    keys.refresh()
    assert not keys.is_due


async def test_a_key_that_was_taken_out_opens_nothing_once_a_look_is_due(
    stand: Stand, admin: Any, key_file: Path, monkeypatch: Any
) -> None:
    await stand.load("pirate", "1.0.0")
    assert (await admin.post("pirate/activate", version="1.0.0")).status_code == 200
    key_file.write_text(f"deploy-bot:{BOT}\n")
    monkeypatch.setattr("server.admin.keys.LOOK_AGAIN_S", 0.0)
    assert stand.code(await admin.post("pirate/activate", version="1.0.0")) == (401, "invalid_admin_key")


def test_a_file_that_turns_bad_leaves_the_keys_as_they_were(key_file: Path, caplog: Any) -> None:
    keys = AdminKeys(key_file)
    key_file.write_text("alice\n")
    keys.refresh()
    assert keys.name_of(BOT) == "deploy-bot"
    os.remove(key_file)
    keys.refresh()
    assert keys.name_of(BOT) == "deploy-bot"
    assert "keys that were read before stay valid" in caplog.text


CALLS = [
    ("POST", "/v1/patches/pirate/activate"),
    ("POST", "/v1/patches/pirate/rollback"),
    ("GET", "/v1/patches/pirate/history"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": "Bearer wrong-wrong-wrong-wrong"},
        {"Authorization": f"Bearer {ALICE}", "X-Admin-Key": "wrong-wrong-wrong-wrong"},
    ],
)
async def test_a_call_without_a_good_key_is_a_401_and_is_written_down(
    stand: Stand, admin: Any, method: str, path: str, headers: dict[str, str]
) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    body = {"version": "1.0.0"} if path.endswith("activate") else None
    answer = await admin.client.request(method, path, headers=headers, json=body)
    assert stand.code(answer) == (401, "invalid_admin_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert await admin.answers() == "pirate@1.1.0"
    (event,) = admin.audit.events
    assert (event.event, event.decision, event.route) == ("admin.call", "denied", f"{method} {path}")
    assert "wrong" not in repr(event)


async def test_the_own_header_serves_where_vllm_asks_for_an_api_key(stand: Stand, admin: Any) -> None:
    await stand.load("pirate", "1.0.0")
    headers = {"Authorization": "Bearer the-api-key", "X-Admin-Key": BOT}
    answer = await admin.client.post("/v1/patches/pirate/rollback", headers=headers)
    assert stand.code(answer) == (409, "nothing_to_roll_back")
    assert admin.audit.events[-1].principal == "deploy-bot"


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_without_a_key_file_every_call_is_refused(
    stand: Stand, admin: Any, method: str, path: str
) -> None:
    await stand.load("pirate", "1.0.0")
    access = AdminAccess(None, admin.audit)
    app = replace(admin.parts, access=access).app(stand.decider)
    admin.client._transport.app = app
    body = {"version": "1.0.0"} if path.endswith("activate") else None
    answer = await admin.client.request(method, path, json=body)
    assert stand.code(answer) == (403, "admin_disabled")
    assert stand.catalog.record("pirate").is_pinned is False


async def test_done_and_failed_orders_are_in_the_audit_log(stand: Stand, admin: Any) -> None:
    await stand.load("pirate", "1.0.0")
    patch = await stand.load("pirate", "1.1.0")
    await admin.post("pirate/activate", version="1.1.0")
    await admin.post("pirate/activate", version="9.9.9")
    done, failed = admin.audit.events
    assert (done.event, done.decision, done.principal) == ("admin.activate", "done", "alice")
    assert (done.patch, done.digest) == ("pirate@1.1.0", patch.digest)
    assert (failed.decision, failed.wish, failed.code) == ("failed", "pirate@9.9.9", "patch_not_found")


async def test_a_body_that_is_no_json_is_a_400_and_a_key_is_in_no_event(stand: Stand, admin: Any) -> None:
    await stand.load("pirate", "1.0.0")
    done = await admin.post("pirate/activate", version="1.0.0")
    broken = await admin.client.post("/v1/patches/pirate/activate", content=b"{")
    assert stand.code(broken) == (400, "invalid_admin_call")
    assert ALICE not in done.text + broken.text + repr(admin.audit.events)


async def test_orders_reach_the_main_app_where_it_has_them(stand: Stand, admin: Any, key_file: Path) -> None:
    """A patch header that a client sends with every request, and a required patch, are no hindrance."""
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    stand.use(default_patch="pirate", require_patch=True)
    app = type(stand.app)()
    parts = {"catalog": stand.catalog, "decider": stand.decider, "metrics": stand.metrics}
    install(app, **parts, admin=admin.parts)
    stand.client._transport.app = app
    headers = {"X-Policy-Patch": "pirate", "X-Admin-Key": ALICE}
    answer = await stand.client.post("/v1/patches/pirate/rollback", headers=headers)
    assert answer.json()["active"]["version"] == "1.0.0"
    assert (await stand.client.post("/v1/patches/pirate/rollback")).status_code == 401


async def test_the_orders_are_in_the_openapi_document(admin: Any) -> None:
    document = (await admin.client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/patches/{name}/activate"]["post"]
    assert set(operation["responses"]) >= {"200", "400", "401", "403", "404", "409", "500"}
    assert operation["security"]
    assert {"type": "http", "scheme": "bearer"} in document["components"]["securitySchemes"].values()
