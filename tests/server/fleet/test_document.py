"""A catalog's document: what is read, what is refused, and how one revision follows from another."""

import json
from dataclasses import replace

import pytest

from server.fleet import changes
from server.fleet.changes import Added, ChangeRefused
from server.fleet.document import (
    CanaryEntry,
    Document,
    DocumentInvalid,
    Meaning,
    VersionEntry,
    moment_of,
    read_document,
    seconds_of,
    write_document,
)

AT = "2026-12-01T06:00:00.000Z"


def _file(version: str, fill: str = "a") -> VersionEntry:
    return VersionEntry("sha256:" + fill * 64, f"patches/tone-{version}.safetensors")


def _added(version: str, fill: str = "a", name: str = "tone") -> Added:
    return Added(name, version, _file(version, fill))


def _document(*versions: str) -> Document:
    document = changes.nothing(AT)
    for version in versions:
        names = changes.with_versions(document.names, [_added(version, version[0])])
        document = changes.next_revision(document, names, published_at=AT)
    return document


def test_a_document_reads_back_as_it_was_written() -> None:
    document = _document("1.0.0", "2.0.0")
    canary = CanaryEntry("1.0.0", 0.25, "header:X-Session-Id", AT)
    names = changes.with_canary(document.names, "tone", canary)
    before = replace(document, policy="policy.yaml", trusted_keys=("keys/a.pub",))
    document = changes.next_revision(before, names, published_at=AT, effective_at=AT)
    data = write_document(document)
    assert read_document(data) == document
    assert write_document(read_document(data)) == data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format"),
        ({"revision": 0}, "revision"),
        ({"revision": "3"}, "revision"),
        ({"colour": "red"}, "colour"),
        ({"revoked": ["sha256:12"]}, "revoked"),
        ({"policy": "../policy.yaml"}, "policy"),
        ({"policy": "/etc/passwd"}, "policy"),
        ({"trusted_keys": [".hidden"]}, "trusted_keys"),
        ({"effective_at": "tomorrow"}, "effective_at"),
        ({"effective_at": "2026-13-01T00:00:00Z"}, "month"),
        ({"min_server": "new"}, "version"),
        ({"names": {"Tone!": {"meaning": None, "versions": {}}}}, "names"),
        ({"names": {"tone": {"meaning": None, "versions": {}}}}, "names.tone"),
        ({"names": []}, "names"),
        ({"retained": {"2": {"tone": {"active": "1.0.0"}}}}, "earlier revision"),
        ({"retained": {"1": {"other": {"active": "1.0.0"}}}}, "no versions"),
        ({"retained": {"01": {}}}, "earlier revision"),
        ({"retained": {"1": {"tone": {"active": "9.0.0"}}}}, "9.0.0"),
    ],
)
def test_what_is_no_document_is_refused(change: dict[str, object], says: str) -> None:
    row = json.loads(write_document(_document("1.0.0", "2.0.0"))) | change
    with pytest.raises(DocumentInvalid, match=says):
        read_document(json.dumps(row).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"format": 1, "format": 1}', b"[" * 100_000])
def test_bytes_that_are_no_json_object_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentInvalid):
        read_document(data)


def test_a_document_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(DocumentInvalid, match="at most"):
        read_document(b" " * ((4 << 20) + 1))


def test_a_meaning_without_its_version_can_not_be_written() -> None:
    document = _document("1.0.0")
    entry = replace(document.names["tone"], meaning=Meaning("3.0.0"))
    with pytest.raises(DocumentInvalid, match=r"3\.0\.0"):
        write_document(replace(document, names={"tone": entry}))


def test_earlier_revisions_say_what_names_meant() -> None:
    document = _document("1.0.0", "2.0.0", "3.0.0")
    assert document.revision == 3
    assert document.meanings(3) == {"tone": Meaning("3.0.0")}
    assert document.meanings(2) == {"tone": Meaning("2.0.0")}
    assert document.meanings(1) == {"tone": Meaning("1.0.0")}
    assert document.meanings(7) is None


def test_a_name_that_was_not_there_yet_means_nothing_as_of_then() -> None:
    document = _document("1.0.0")
    names = changes.with_versions(document.names, [_added("1.0.0", name="mood")])
    document = changes.next_revision(document, names, published_at=AT)
    assert document.meanings(1) == {"tone": Meaning("1.0.0")}
    assert read_document(write_document(document)) == document


def test_a_withdrawn_name_is_still_there_as_of_before() -> None:
    document = _document("1.0.0")
    document = changes.next_revision(document, changes.without(document.names, "tone"), published_at=AT)
    assert document.meanings(2) == {}
    assert document.meanings(1) == {"tone": Meaning("1.0.0")}
    assert read_document(write_document(document)) == document


def test_going_back_is_a_higher_revision_with_the_old_pointers() -> None:
    document = _document("1.0.0", "2.0.0")
    back = changes.next_revision(document, changes.as_of(document, 1), published_at=AT)
    assert back.revision == 3
    assert back.meanings(3) == {"tone": Meaning("1.0.0")}
    assert back.meanings(2) == {"tone": Meaning("2.0.0")}
    with pytest.raises(ChangeRefused, match="retained"):
        changes.as_of(document, 9)


def test_only_so_many_revisions_are_retained_and_their_versions_go_with_them() -> None:
    document = _document(*(f"{n}.0.0" for n in range(1, 9)))
    document = changes.next_revision(document, document.names, published_at=AT, keep=2)
    assert set(document.retained) == {"7", "8"}
    # What is active and was, and three that could be gone back to.
    assert list(document.names["tone"].versions) == ["4.0.0", "5.0.0", "6.0.0", "7.0.0", "8.0.0"]


def test_a_version_keeps_its_content() -> None:
    document = _document("1.0.0")
    with pytest.raises(ChangeRefused, match="another content"):
        changes.with_versions(document.names, [_added("1.0.0", "f")])
    assert changes.with_versions(document.names, [_added("1.0.0", "1")]) == document.names


def test_a_canary_stands_beside_what_is_active_and_ends_once() -> None:
    document = _document("1.0.0")
    held = changes.with_versions(document.names, [_added("2.0.0", "2")], activate=False)
    canary = CanaryEntry("2.0.0", 0.05, "request", AT)
    names = changes.with_canary(held, "tone", canary)
    later = changes.with_canary(names, "tone", CanaryEntry("2.0.0", 0.5, "request", "2027-01-01T00:00:00Z"))
    assert later["tone"].meaning == Meaning("1.0.0", replace(canary, share=0.5))
    with pytest.raises(ChangeRefused, match="promote or abort"):
        changes.with_versions(names, [_added("3.0.0", "3")])
    promoted = changes.canary_ended(names, "tone", is_promoted=True)
    assert promoted["tone"].meaning == Meaning("2.0.0")
    assert changes.canary_ended(names, "tone", is_promoted=False)["tone"].meaning == Meaning("1.0.0")
    with pytest.raises(ChangeRefused, match="no canary"):
        changes.canary_ended(promoted, "tone", is_promoted=True)
    with pytest.raises(ChangeRefused, match="stand beside"):
        changes.with_canary(promoted, "tone", canary)


def test_no_name_may_mean_what_is_revoked() -> None:
    document = _document("1.0.0", "2.0.0")
    digest = document.names["tone"].versions["2.0.0"].digest
    with pytest.raises(ChangeRefused, match="revoked"):
        changes.require_unrevoked(document.names, [digest])
    changes.require_unrevoked(changes.as_of(document, 1), [digest])


def test_moments_keep_their_milliseconds() -> None:
    assert seconds_of(moment_of(1_780_000_000.123)) == pytest.approx(1_780_000_000.123, abs=1e-6)
