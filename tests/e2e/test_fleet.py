"""Two real servers, one of two processes, follow one catalog behind a real gateway."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from patches.format import Patch, encode_patch
from server.cli import main
from server.fleet.publisher import Publisher
from server.fleet.roles import FleetFolder
from server.fleet.store import open_store
from tests.haproxy import behind_haproxy, until
from tests.web import serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="two servers that follow a catalog"),
    pytest.mark.feature("a fleet's catalog: two servers, one of two processes, behind HAProxy"),
]

NUM_CONVERSATIONS = 40


@dataclass
class Fleet:
    """The publisher's folder, and what the servers say."""

    folder: Path
    servers: list[Any]
    patches: dict[str, Path]

    def order(self, action: str, *arguments: Any) -> None:
        assert main(["fleet", action, str(self.folder), *map(str, arguments)]) == 0

    def revisions(self) -> list[tuple[int, int]]:
        """Return what is in force and heard; nothing of a process that refuses, as one that just started."""
        answers = [server.client.get("/v1/patches") for server in self.servers]
        assert {answer.status_code for answer in answers} <= {200, 503}
        reports = [answer.json()["fleet"] for answer in answers if answer.status_code == 200]
        return [(report["revision"], report["heard"]) for report in reports]

    def wait_for(self, revision: int) -> None:
        until(lambda: [number for number, _ in self.revisions()] == [revision] * len(self.servers))

    @property
    def revision(self) -> int:
        folder = FleetFolder.read(self.folder)
        document = Publisher(folder, open_store(folder.store)).read().document
        assert document is not None
        return document.revision

    def meanings(self) -> dict[int, dict[str, set[str]]]:
        """Return the versions that each name may be answered by, in every revision that is retained."""
        folder = FleetFolder.read(self.folder)
        document = Publisher(folder, open_store(folder.store)).read().document
        assert document is not None
        numbers = [*map(int, document.retained), document.revision]
        known = {number: document.meanings(number) or {} for number in numbers}
        return {number: {n: set(m.versions) for n, m in names.items()} for number, names in known.items()}


@pytest.fixture(scope="module")
def fleet(
    start_module_server: Any, tiny_model: Any, tiny_patches: Any, tmp_path_factory: Any
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    patches: dict[str, Path] = {}
    for name, version in itertools.product(("mood", "tone"), ("1.0.0", "2.0.0", "3.0.0")):
        ids = list(range(1000 + 10 * len(patches), 1032))
        made: Patch = tiny_patches.of_token_ids(name, ids[:24] or [7], version=version)
        patches[f"{name}-{version}"] = path = folder / f"{name}-{version}.safetensors"
        path.write_bytes(encode_patch(made.manifest, made.tensors))
    publisher, store = folder / "publisher", folder / "store"
    assert main(["fleet", "init", str(publisher), "--store", str(store)]) == 0
    first = [str(patches[f"{name}-1.0.0"]) for name in ("mood", "tone")]
    assert main(["fleet", "publish", str(publisher), *first, "--at-once"]) == 0
    with serving(store) as url:
        flags = ["--dtype", "float32", "--max-model-len", "512", "--catalog", url]
        flags += ["--catalog-root", str(publisher / "root.json"), "--catalog-poll", "0.5"]
        servers = [
            start_module_server(tiny_model, *flags, is_fresh=True),
            start_module_server(tiny_model, *flags, "--api-server-count", "2", is_fresh=True),
        ]
        for server in servers:
            server.wait_ready()
        yield Fleet(publisher, servers, patches)


def ask(server: Any, name: str, as_of: str | None = None, session: str = "s") -> httpx.Response:
    headers = {"X-Session-Id": session} | ({"X-Policy-Patch-As-Of": as_of} if as_of is not None else {})
    answer: httpx.Response = server.complete(list(range(300, 316)), patch=name, headers=headers, max_tokens=2)
    return answer


def test_both_follow_and_are_ready(fleet: Fleet) -> None:
    fleet.wait_for(1)
    for server in fleet.servers:
        until(lambda server=server: server.client.get("/ready").status_code == 200)
        answer = ask(server, "tone")
        assert answer.headers["X-Policy-Patch"] == "tone@1.0.0"
        assert answer.headers["X-Policy-Patch-Revision"] == "1"


def test_each_conversation_has_one_version_through_all_that_is_published(fleet: Fleet) -> None:
    seen: dict[int, set[str]] = {i: set() for i in range(NUM_CONVERSATIONS)}
    answers: list[tuple[str, str]] = []
    is_over = threading.Event()
    turns = itertools.count()

    def talk(conversation: int) -> None:
        as_of = None
        while not is_over.is_set():
            # The worst gateway: each turn goes to another server.
            answer = ask(fleet.servers[next(turns) % 2], "tone", as_of, f"session-{conversation}")
            if answer.status_code == 503:
                assert answer.json()["error"]["code"] == "not_in_step"
                time.sleep(0.1)
                continue
            assert answer.status_code == 200, answer.text
            as_of = as_of or answer.headers["X-Policy-Patch-Revision"]
            seen[conversation].add(answer.headers["X-Policy-Patch"])
            answers.append((answer.headers["X-Policy-Patch-Revision"], answer.headers["X-Policy-Patch"]))
            time.sleep(0.2)

    with ThreadPoolExecutor(NUM_CONVERSATIONS) as pool:
        talks = [pool.submit(talk, i) for i in range(NUM_CONVERSATIONS)]
        fleet.order("publish", fleet.patches["tone-2.0.0"], fleet.patches["mood-2.0.0"], "--in", "3")
        fleet.wait_for(2)
        fleet.order("publish", fleet.patches["tone-3.0.0"], "--hold", "--at-once")
        fleet.order("canary", "tone", "3.0.0", "--share", "0.5", "--at-once")
        fleet.wait_for(4)
        fleet.order("promote", "tone", "--in", "2")
        fleet.wait_for(5)
        fleet.order("rollback", "--to", "1")
        fleet.wait_for(6)
        is_over.set()
        for one in talks:
            one.result()
    assert {len(versions) for versions in seen.values()} == {1}
    meant = fleet.meanings()
    for revision, patch in set(answers):
        name, _, version = patch.partition("@")
        assert version in meant[int(revision)][name], (revision, patch)
    assert len(answers) > 4 * NUM_CONVERSATIONS


def test_two_names_move_together_in_both_processes_of_a_server(fleet: Fleet) -> None:
    server = fleet.servers[1]
    before = fleet.revision
    is_over = threading.Event()
    found: set[tuple[int, str]] = set()

    def look() -> None:
        while not is_over.is_set():
            for name in ("mood", "tone"):
                answer = ask(server, name)
                assert answer.status_code == 200, answer.text
                found.add((int(answer.headers["X-Policy-Patch-Revision"]), answer.headers["X-Policy-Patch"]))

    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(look) for _ in range(4)]
        fleet.order("rollback", "--to", before - 1)
        fleet.wait_for(before + 1)
        fleet.order("rollback", "--to", before)
        fleet.wait_for(before + 2)
        is_over.set()
        for one in looks:
            one.result()
    meant = fleet.meanings()
    for revision, patch in found:
        name, _, version = patch.partition("@")
        assert meant[revision][name] == {version}
    assert len({revision for revision, _ in found}) >= 3


@pytest.fixture
def gateway(fleet: Fleet) -> Iterator[httpx.Client]:
    with behind_haproxy(*(f"127.0.0.1:{server.port}" for server in fleet.servers)) as client:
        yield client


def test_a_server_that_can_not_load_what_is_new_gets_no_request(fleet: Fleet, gateway: httpx.Client) -> None:
    server = fleet.servers[1]
    # Of the copy of one server; as if its disk were full.
    copy = server.patches / ".fleet" / "patches"
    blocked = copy / "mood-3.0.0.safetensors"
    blocked.mkdir()
    fleet.order("publish", fleet.patches["mood-3.0.0"], "--at-once")
    revision = fleet.revision
    try:
        until(lambda: server.client.get("/ready").status_code == 503)
        assert server.client.get("/health").status_code == 200
        assert fleet.revisions() == [(revision, revision), (revision - 1, revision)]
        named = server.complete([1, 2, 3], patch="mood@3.0.0")
        assert (named.status_code, named.json()["error"]["code"]) == (503, "patch_not_ready")
        ahead = server.complete([1, 2, 3], patch="mood", headers={"X-Policy-Patch-As-Of": str(revision)})
        assert (ahead.status_code, ahead.json()["error"]["code"]) == (503, "not_in_step")
        time.sleep(1.5)
        for i in range(48):
            answer = gateway.post(
                "/v1/completions",
                json={"model": "base", "prompt": [1, 2, 3], "max_tokens": 1},
                headers={"X-Policy-Patch": "mood", "X-Session-Id": f"s{i % 12}"},
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["X-Policy-Patch"] == "mood@3.0.0"
    finally:
        blocked.rmdir()
    fleet.wait_for(revision)
    until(lambda: server.client.get("/ready").status_code == 200)


def test_without_a_stamp_what_is_required_is_refused_when_the_lease_ends(
    fleet: Fleet, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nrequired: [tone]\nothers: {allow: all}\n")
    fleet.order("publish", "--policy", policy, "--at-once")
    fleet.wait_for(fleet.revision)
    folder = replace(FleetFolder.read(fleet.folder), lease_s=4.0)
    Publisher(folder, open_store(folder.store)).stamp()
    ends_s = time.monotonic() + 4.0
    for server in fleet.servers:
        answer = server.complete([1, 2, 3], max_tokens=1)
        assert answer.headers["X-Policy-Patch"].startswith("tone@")
    until(
        lambda: all(server.complete([1, 2, 3], max_tokens=1).status_code == 503 for server in fleet.servers)
    )
    assert time.monotonic() >= ends_s - 1.0
    for server in fleet.servers:
        for _ in range(6):
            answer = server.complete([1, 2, 3], max_tokens=1)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "catalog_stale")
        assert server.client.get("/ready").json()["error"]["code"] == "catalog_stale"
        assert server.client.get("/health").status_code == 200
    fleet.order("stamp")
    until(lambda: all(server.client.get("/ready").status_code == 200 for server in fleet.servers))
    for server in fleet.servers:
        assert server.complete([1, 2, 3], max_tokens=1).status_code == 200
