"""Which version is active: the rules as tables."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patches.names import version_key
from server.versions.activation import (
    MAX_HISTORY,
    MAX_PREVIOUS,
    Cause,
    NameRecord,
    Target,
    activated,
    follow_folder,
    followed,
    removed,
    rolled_back,
    with_files,
)

FOLDER = Cause("folder", "folder", 1.0)
ALICE = Cause("activate", "alice", 2.0)


def target(text: str) -> Target:
    """`1.0.0` or, for other content under the same version, `1.0.0+x`-like `1.0.0'`."""
    return Target(text.rstrip("'"), f"sha256:{text}")


def targets(text: str) -> list[Target]:
    return [target(word) for word in text.split()]


def record(
    active: str | None, *, pinned: bool = False, held: bool = False, back: str = "", previous: str = ""
) -> NameRecord:
    return NameRecord(
        active=target(active) if active is not None else None,
        is_pinned=pinned,
        is_held=held,
        previous=tuple(targets(previous)),
        rolled_back=tuple(targets(back)),
    )


RULES: list[tuple[NameRecord, str, str | None]] = [
    # record, files, what is active then
    (record(None), "", None),
    (record(None), "1.0.0 1.10.0 1.9.0", "1.10.0"),
    (record("1.0.0"), "1.0.0 1.1.0", "1.1.0"),
    (record("1.1.0"), "1.0.0 1.1.0", "1.1.0"),
    (record("1.1.0"), "1.0.0", "1.0.0"),
    (record("1.1.0"), "", None),
    # A file with new content replaces its version, and nothing else comes up for it.
    (record("1.0.0"), "1.0.0'", "1.0.0'"),
    (record("1.0.0", back="1.2.0"), "1.0.0' 1.1.0 1.2.0", "1.0.0'"),
    # Pinned: files change nothing, not even by going.
    (record("1.0.0", pinned=True), "1.0.0 2.0.0", "1.0.0"),
    (record("1.0.0", pinned=True), "2.0.0", "1.0.0"),
    (record(None, pinned=True), "2.0.0", None),
    # Rolled back from 1.2.0: it stays out, and so does what is below it.
    (record("1.0.0", back="1.2.0"), "1.0.0 1.1.0 1.2.0", "1.0.0"),
    (record("1.0.0", back="1.2.0"), "1.0.0 1.2.0'", "1.0.0"),
    (record("1.0.0", back="1.2.0"), "1.0.0 1.2.0 1.2.1", "1.2.1"),
    (record("1.0.0", back="1.2.0"), "1.1.0 1.2.0", "1.1.0"),
    (record("1.0.0", back="1.2.0"), "1.2.0", None),
    # Made active by an operator although no file holds it.
    (record("1.0.0", held=True), "", "1.0.0"),
    (record("1.0.0", held=True, back="1.0.0'"), "1.0.0'", "1.0.0"),
    (record("1.0.0", held=True), "0.9.0 1.1.0", "1.1.0"),
]


@pytest.mark.parametrize(("before", "files", "active"), RULES)
def test_files_decide_by_the_rules(before: NameRecord, files: str, active: str | None) -> None:
    assert follow_folder(before, targets(files)) == (target(active) if active is not None else None)


def test_nothing_new_in_the_folder_is_no_entry_in_the_history() -> None:
    before = record("1.1.0")
    assert with_files(before, targets("1.0.0 1.1.0"), FOLDER) is before


def test_what_was_active_before_is_remembered_latest_first() -> None:
    after = NameRecord()
    for files in ("1.0.0", "1.0.0 1.1.0", "1.0.0 1.1.0 1.2.0"):
        after = with_files(after, targets(files), FOLDER)
    assert after.previous == tuple(targets("1.1.0 1.0.0"))


def test_an_activation_pins_and_makes_good_what_was_rolled_back_from() -> None:
    after = activated(record("1.0.0", back="1.1.0 1.2.0"), target("1.2.0"), ALICE, has_file=True)
    assert (after.active, after.is_pinned, after.rolled_back) == (target("1.2.0"), True, (target("1.1.0"),))


def test_a_rollback_leaves_the_pin_as_it_is() -> None:
    for is_pinned in (False, True):
        before = record("1.1.0", pinned=is_pinned, previous="1.0.0")
        assert rolled_back(before, target("1.0.0"), ALICE, has_file=True).is_pinned is is_pinned


def test_a_rollback_past_a_version_leaves_that_one_behind_too() -> None:
    before = record("1.2.0", previous="1.1.0 1.0.0")
    after = rolled_back(before, target("1.0.0"), ALICE, has_file=True)
    assert set(after.rolled_back) == {target("1.1.0"), target("1.2.0")}
    assert after.previous == ()


def test_a_file_that_comes_back_ends_the_holding() -> None:
    """From then on its going means what it means for every file."""
    held = record("1.0.0", held=True)
    back = with_files(held, targets("1.0.0"), FOLDER)
    assert not back.is_held
    assert with_files(back, [], FOLDER).active is None


def test_following_drops_pin_and_holding() -> None:
    after = followed(record("1.0.0", pinned=True, held=True), targets("0.9.0"), ALICE)
    assert (after.active, after.is_pinned, after.needs_no_file) == (target("0.9.0"), False, False)


def test_removing_the_pinned_version_takes_the_pin_and_the_way_back_to_it() -> None:
    before = record("1.1.0", pinned=True, previous="1.0.0")
    after = removed(before, targets("1.1.0"), targets("1.0.0"), ALICE)
    assert (after.active, after.is_pinned, after.previous) == (target("1.0.0"), False, ())


def test_removing_another_version_leaves_the_pin() -> None:
    before = record("1.1.0", pinned=True, previous="1.0.0")
    after = removed(before, targets("1.0.0"), [], ALICE)
    assert (after.active, after.is_pinned, after.previous) == (target("1.1.0"), True, ())


VERSIONS = st.sampled_from(["1.0.0", "1.0.0'", "1.1.0", "1.1.0'", "1.2.0", "2.0.0-rc.1", "2.0.0"]).map(target)
LOOKS = st.lists(st.one_of(st.frozensets(VERSIONS), st.just("rollback")), max_size=30)


# A busy machine is no fault of the strategy.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(LOOKS)
def test_whatever_the_folder_does_a_version_that_was_rolled_back_from_stays_out(looks: Sequence) -> None:  # type: ignore[type-arg]
    now = NameRecord()
    left: set[Target] = set()
    for look in looks:
        if look == "rollback":
            if now.active is None or not now.previous:
                continue
            left.add(now.active)
            now = rolled_back(now, now.previous[0], ALICE, has_file=False)
            left.discard(now.active) if now.active else None
        else:
            before = now
            now = with_files(now, look, FOLDER)
            if now.active != before.active:
                assert now.active not in left
        assert len(now.history) <= MAX_HISTORY
        assert len(now.previous) <= MAX_PREVIOUS
        assert now.active not in now.previous


@given(st.lists(st.frozensets(VERSIONS), max_size=20))
def test_without_orders_the_active_version_is_the_highest_file(looks: Sequence[frozenset[Target]]) -> None:
    now = NameRecord()
    for look in looks:
        now = with_files(now, look, FOLDER)
        highest = max((version_key(t.version) for t in look), default=None)
        assert (version_key(now.active.version) if now.active else None) == highest
