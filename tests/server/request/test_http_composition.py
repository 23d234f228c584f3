"""Patches that nobody composed, joined as a request names them: only where the operator allows it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from server.versions.composition import COMPOSED_LABEL, JoinedComposition
from tests.server.stand import Stand

HEADER = "x-policy-patch"
DIGEST_HEADER = "x-policy-patch-digest"
FORM_HEADER = "x-policy-patch-composition"


@pytest.fixture
async def parts(stand: Stand) -> tuple[Any, Any]:
    """Two patches that nothing was composed of."""
    return await stand.load("toxicity", fill=1.0), await stand.load("bias", num_tokens=3, fill=2.0)


@pytest.fixture
def composing(stand: Stand, parts: Any) -> Any:
    """A server that was started with ``--composition joined``."""
    stand.catalog.publication.view = replace(stand.catalog.view, may_compose=True)
    return stand


async def test_nothing_is_joined_unless_the_operator_allows_it(stand: Stand, parts: Any) -> None:
    response = await stand.chat("toxicity, bias")
    assert stand.code(response) == (400, "composition_not_prepared")
    assert "--composition joined" in response.json()["error"]["message"]
    assert stand.engine.decisions == []


async def test_an_answer_says_that_its_parts_do_not_know_each_other(composing: Any, parts: Any) -> None:
    response = await composing.chat("toxicity, bias")
    assert response.status_code == 200
    assert response.headers[HEADER] == "toxicity@1.0.0, bias@1.0.0"
    assert response.headers[FORM_HEADER] == "joined"
    assert response.headers[DIGEST_HEADER] not in {part.digest for part in parts}
    (decision,) = composing.engine.decisions
    assert decision.patch.parts == parts
    assert decision.patch.num_tokens == 5


async def test_the_reference_in_the_answer_gets_the_same_again(composing: Any) -> None:
    first = await composing.chat("toxicity, bias")
    again = await composing.chat(first.headers[HEADER])
    assert again.headers[DIGEST_HEADER] == first.headers[DIGEST_HEADER]


async def test_every_selection_of_parts_has_a_digest_of_its_own(composing: Any) -> None:
    wishes = ["toxicity", "bias", "toxicity, bias", "bias, toxicity", "bias, bias", "toxicity, bias, bias"]
    digests = [(await composing.chat(wish)).headers[DIGEST_HEADER] for wish in wishes]
    assert len(set(digests)) == len(wishes)


async def test_a_composition_of_goes_first_and_says_so(composing: Any, parts: Any) -> None:
    components = [{"name": p.name, "version": p.version, "digest": p.digest} for p in parts]
    both = await composing.load("toxicity.bias", origin={"method": "compose", "components": components})
    composing.catalog.publication.view = replace(composing.catalog.view, may_compose=True)
    for wish in ("toxicity, bias", "toxicity.bias"):
        response = await composing.chat(wish)
        assert response.headers[DIGEST_HEADER] == both.digest
        assert response.headers[FORM_HEADER] == "prepared"
    assert (await composing.chat("bias, toxicity")).headers[FORM_HEADER] == "joined"
    assert composing.value('policy_patch_compositions_total{form="prepared"}') == 2
    assert composing.value('policy_patch_compositions_total{form="joined"}') == 1


async def test_a_patch_that_is_no_composition_has_no_form(composing: Any) -> None:
    assert FORM_HEADER not in (await composing.chat("bias")).headers
    assert FORM_HEADER not in (await composing.chat()).headers


async def test_a_part_that_is_not_loaded_is_no_part(composing: Any) -> None:
    assert composing.code(await composing.chat("toxicity, tone")) == (404, "patch_not_found")


async def test_parts_stay_until_the_last_answer_that_uses_them(
    composing: Any, parts: Any, open_stream: Callable[..., Any]
) -> None:
    composing.engine.may_go_on.clear()
    stream = open_stream("toxicity, bias")
    assert (await stream.start())[1][FORM_HEADER] == "joined"
    for name in ("toxicity", "bias"):
        await composing.catalog.forget_file(composing.folder / f"{name}-1.0.0.safetensors")
    assert {part.digest for part in parts} <= composing.residency.resident.keys()
    assert composing.code(await composing.chat("toxicity, bias")) == (404, "patch_not_found")
    composing.engine.may_go_on.set()
    assert "error" not in await stream.rest()
    await composing.catalog.residents.drained()
    assert composing.residency.resident == {}


async def test_metrics_count_all_of_them_under_one_label(composing: Any) -> None:
    """A label per selection would let clients make as many series as they like."""
    await composing.chat("toxicity, bias")
    await composing.chat("bias, toxicity")
    assert composing.value(f'policy_patch_requests_total{{outcome="ok",patch="{COMPOSED_LABEL}"}}') == 2
    assert f'policy_patch_time_to_first_token_seconds_count{{patch="{COMPOSED_LABEL}"}} 2' in (
        composing.exposition()
    )
    assert "toxicity@" not in composing.exposition()


def test_a_composition_of_one_content_is_equal_to_itself_only(parts: Any) -> None:
    toxicity, bias = parts
    one, same = (JoinedComposition.of((toxicity, bias)) for _ in range(2))
    assert one == same
    assert one not in (JoinedComposition.of((bias, toxicity)), toxicity, bias)


async def test_withdrawing_a_part_ends_the_answers_that_use_it(
    composing: Any, parts: Any, open_stream: Callable[..., Any]
) -> None:
    composing.engine.may_go_on.clear()
    stream = open_stream("toxicity, bias")
    await stream.start()
    composing.catalog.residents[parts[1].digest].withdraw()
    assert "was withdrawn" in await stream.rest()
    assert composing.in_flight() == 0
