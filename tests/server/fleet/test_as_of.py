"""A request is decided by the revision that it names, and never gets around what holds now."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.errors import CatalogStale, MalformedPatchName
from server.fleet import changes
from server.frontends.messages import fleet_body, with_fleet_body
from server.policy.file import parse_policy
from server.versions.revision import parse_revision_header
from tests.server.fleet.conftest import Fleet
from tests.server.fleet.replica import Replica, replica_of, ship
from tests.server.stand import Stand


@pytest.fixture
async def replica(stand: Stand, fleet: Fleet, tmp_path: Path) -> Replica:
    """A server at revision 3: tone was 1.0.0, then 2.0.0, and mood is new."""
    made = replica_of(stand, fleet.folder.root, str(tmp_path / "store"), tmp_path / "copy")
    ship(fleet, ("tone", "1.0.0"))
    ship(fleet, ("tone", "2.0.0"))
    ship(fleet, ("mood", "1.0.0"))
    await made.sync.look()
    return made


async def _ask(replica: Replica, as_of: Any, wish: str | None = "tone") -> httpx.Response:
    values = as_of if isinstance(as_of, list) else [as_of]
    headers = [("X-Policy-Patch-As-Of", str(value)) for value in values]
    if wish is not None:
        headers.append(("X-Policy-Patch", wish))
    return await replica.stand.client.post("/v1/chat/completions", headers=headers, json={})


@pytest.mark.parametrize(("as_of", "version"), [(1, "1.0.0"), (2, "2.0.0"), (3, "2.0.0")])
async def test_a_bare_name_means_what_it_meant_then(replica: Replica, as_of: int, version: str) -> None:
    answer = await _ask(replica, as_of)
    assert answer.headers["X-Policy-Patch"] == f"tone@{version}"
    assert answer.headers["X-Policy-Patch-Revision"] == str(as_of)


async def test_an_answer_names_the_revision_that_holds(replica: Replica) -> None:
    for wish in ("tone", "none", None):
        headers = {"X-Policy-Patch": wish} if wish is not None else {}
        answer = await replica.stand.client.post("/v1/chat/completions", headers=headers, json={})
        assert answer.headers["X-Policy-Patch-Revision"] == "3"


async def test_decisions_that_are_remembered_are_of_one_revision(replica: Replica) -> None:
    for _ in range(3):
        for as_of, version in ((1, "1.0.0"), (3, "2.0.0"), (2, "2.0.0")):
            assert (await _ask(replica, as_of)).headers["X-Policy-Patch"] == f"tone@{version}"


async def test_a_name_that_was_not_there_yet_is_no_answer(replica: Replica) -> None:
    answer = await _ask(replica, 1, "mood")
    assert replica.stand.code(answer) == (503, "patch_not_ready")
    assert "X-Policy-Patch-Digest" not in answer.headers


@pytest.mark.parametrize(
    ("as_of", "status", "code"),
    [
        (4, 503, "not_in_step"),
        (10**14, 503, "not_in_step"),
        (10**15, 400, "malformed_patch_name"),
        ("0", 400, "malformed_patch_name"),
        ("-1", 400, "malformed_patch_name"),
        ("1.0", 400, "malformed_patch_name"),
        ("", 400, "malformed_patch_name"),
        ([1, 1], 400, "malformed_patch_name"),
        ("1, 2", 400, "malformed_patch_name"),
    ],
)
async def test_other_revisions_are_errors(replica: Replica, as_of: Any, status: int, code: str) -> None:
    answer = await _ask(replica, as_of)
    assert replica.stand.code(answer) == (status, code)
    assert (answer.headers.get("Retry-After") is not None) == (status == 503)


async def test_a_revision_that_is_not_retained_is_gone(replica: Replica, fleet: Fleet) -> None:
    published = fleet.publisher().read()
    assert published.document is not None
    at = published.document.published_at
    document = changes.next_revision(published.document, published.document.names, published_at=at, keep=1)
    fleet.publisher().publish(published, document, {})
    await replica.sync.look()
    assert replica.stand.code(await _ask(replica, 2)) == (409, "revision_gone")
    assert (await _ask(replica, 3)).status_code == 200


async def test_a_server_of_no_fleet_has_no_revisions(stand: Stand) -> None:
    await stand.load()
    headers = {"X-Policy-Patch": "pirate", "X-Policy-Patch-As-Of": "1"}
    answer = await stand.client.post("/v1/chat/completions", headers=headers, json={})
    assert stand.code(answer) == (409, "revision_gone")


async def test_what_is_required_is_that_of_now_in_every_revision(replica: Replica) -> None:
    replica.stand.decider.policy = parse_policy(b"version: 1\nrequired: [tone]\nothers: {allow: all}\n")
    answer = await _ask(replica, 1, None)
    assert answer.headers["X-Policy-Patch"] == "tone@2.0.0"
    # To name the old one in front of it is a composition that is not there, and no way around.
    assert replica.stand.code(await _ask(replica, 1, "tone")) == (400, "composition_not_prepared")


async def test_a_rule_holds_in_every_revision(replica: Replica) -> None:
    replica.stand.decider.policy = parse_policy(b"version: 1\nothers: {allow: [tone@2.0.0]}\n")
    assert (await _ask(replica, 2)).headers["X-Policy-Patch"] == "tone@2.0.0"
    assert replica.stand.code(await _ask(replica, 1)) == (403, "patch_forbidden")


async def test_followers_are_told_all_of_it(replica: Replica) -> None:
    view = replica.stand.catalog.view
    assert view.fleet is not None
    view = replace(view, fleet=replace(view.fleet, heard=9, coming=frozenset({("tone", "3.0.0")})))
    told = with_fleet_body(replace(view, fleet=None), fleet_body(view))
    assert told.fleet == view.fleet
    assert with_fleet_body(view, None).fleet is None


async def test_after_the_lease_what_is_needed_is_refused_and_the_rest_as_flags_say(replica: Replica) -> None:
    stand = replica.stand
    fleet = stand.catalog.view.fleet
    assert fleet is not None
    await stand.catalog.stand_at(replace(fleet, lease_ends_s=time.monotonic() - 1))
    assert (await stand.chat("tone")).status_code == 200
    assert stand.code(await stand.client.get("/ready")) == (503, "catalog_stale")
    stand.use(require_patch=True)
    assert stand.code(await stand.chat("tone")) == (503, "catalog_stale")
    stand.decider.policy = parse_policy(b"version: 1\nrequired: [tone]\nothers: {allow: all}\n")
    assert stand.code(await stand.chat()) == (503, "catalog_stale")
    stand.use()
    await stand.catalog.stand_at(replace(fleet, lease_ends_s=time.monotonic() - 1, may_be_stale=False))
    for wish in ("tone", "none", None):
        assert stand.code(await stand.chat(wish)) == (503, "catalog_stale")
    await stand.catalog.stand_at(replace(fleet, lease_ends_s=time.monotonic() + 1))
    stand.use(require_patch=True)
    assert (await stand.chat("tone")).status_code == 200


def test_a_lease_that_lasts_refuses_no_one(replica: Replica) -> None:
    fleet = replica.stand.catalog.view.fleet
    assert fleet is not None
    fleet.require_lease(needs_patch=False)
    with pytest.raises(CatalogStale):
        fleet.require_lease(needs_patch=True)


def test_a_header_with_space_around_it_is_read() -> None:
    assert parse_revision_header([b" 12\t"]) == 12
    with pytest.raises(MalformedPatchName):
        parse_revision_header([b"12", b"12"])
