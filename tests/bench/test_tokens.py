"""Token ids that a server gives: the policy's and the user turn's."""

import pytest
from aiohttp import web

from bench.errors import RequestFailed
from bench.load.tokens import served_model, tokenize_policy
from bench.servers.fake import FakeServer, policy_ids


async def test_policy_and_user_turn_make_up_a_conversation(serve, session) -> None:
    url = await serve(FakeServer())
    ids, turn = await tokenize_policy(session, url, "fake", " be kind\n", is_raw=False)
    assert list(ids) == policy_ids("be kind")
    # Roles of the stand-in: 2 opens the user's turn, 4 ends it, 3 opens the answer.
    assert (turn.head, turn.tail) == ((2,), (4, 3))
    assert len(set(turn.pool)) > 50


async def test_raw_policy_has_nothing_around_the_user(serve, session) -> None:
    url = await serve(FakeServer())
    ids, turn = await tokenize_policy(session, url, "fake", "be kind", is_raw=True)
    assert len(ids) == 2
    assert (turn.head, turn.tail) == ((), ())


async def test_template_that_rewrites_the_system_message_is_refused(serve, session) -> None:
    class Rewriting(FakeServer):
        async def _tokenize(self, request: web.Request) -> web.Response:
            body = await request.json()
            ids = [len(body.get("messages", ())), 5]
            return web.json_response({"tokens": ids})

    url = await serve(Rewriting())
    with pytest.raises(RequestFailed, match="use --raw"):
        await tokenize_policy(session, url, "fake", "be kind", is_raw=False)


async def test_served_model_is_the_one_without_a_parent(serve, session) -> None:
    url = await serve(FakeServer(patch_name="kind"))
    assert await served_model(session, url) == "fake"
