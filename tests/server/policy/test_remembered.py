"""Decisions that were made before are those that would be made again."""

import pytest

from server.policy import remembered
from server.policy.caller import ANYONE
from server.policy.decision import Asked, decide
from server.policy.remembered import Decisions
from server.policy.rules import OPEN_POLICY, Policy
from server.versions.view import CatalogView
from tests.server.policy.test_decision import VIEW, wish


@pytest.fixture
def num_made(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Collect what is decided anew."""
    made: list[Asked] = []

    def noting(caller: object, asked: Asked, *rest: object) -> object:
        made.append(asked)
        return decide(caller, asked, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(remembered, "decide", noting)
    return made


def test_what_was_decided_is_not_decided_again(num_made: list[Asked]) -> None:
    decisions = Decisions()
    found = [decisions.decide(ANYONE, Asked(wish("toxicity")), VIEW, OPEN_POLICY) for _ in range(3)]
    assert found == [decide(ANYONE, Asked(wish("toxicity")), VIEW, OPEN_POLICY)] * 3
    assert len(num_made) == 1


def test_another_view_or_policy_decides_anew() -> None:
    decisions, asked = Decisions(), Asked()
    requiring = Policy.from_flags(default_patch="toxicity", require_patch=True)
    assert decisions.decide(ANYONE, asked, VIEW, OPEN_POLICY).selection.patch is None
    patch = decisions.decide(ANYONE, asked, VIEW, requiring).selection.patch
    assert patch is not None
    assert patch.name == "toxicity"
    assert decisions.decide(ANYONE, asked, CatalogView(), requiring).outcome is not patch
    named = Asked(wish("toxicity"))
    assert decisions.decide(ANYONE, named, VIEW, OPEN_POLICY).selection.patch is not None
    with pytest.raises(remembered.PolicyPatchError):
        assert decisions.decide(ANYONE, named, CatalogView(), OPEN_POLICY).selection


def test_refusals_are_made_anew(num_made: list[Asked]) -> None:
    decisions, asked = Decisions(), Asked(wish("no-such-patch"))
    first, second = (decisions.decide(ANYONE, asked, VIEW, OPEN_POLICY).outcome for _ in range(2))
    assert isinstance(first, remembered.PolicyPatchError)
    assert first is not second
    assert len(num_made) == 2


def test_no_more_decisions_are_remembered_than_there_may_be(
    num_made: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MAX_DECISIONS", 1)
    decisions = Decisions()
    for name in ("toxicity", "bias", "toxicity"):
        decisions.decide(ANYONE, Asked(wish(name)), VIEW, OPEN_POLICY)
    assert len(num_made) == 3
