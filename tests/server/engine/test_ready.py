"""The block that a server prints once it is ready."""

import argparse
import asyncio
import io
import json
import shlex
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from patches.kinds.prefix import PrefixBody
from patches.manifest import Manifest
from server.engine.ready import Ready, announce, announced, block, show
from server.policy.file import parse_policy
from server.policy.rules import OPEN_POLICY, Policy
from server.versions.view import CatalogView, ServedPatch
from tests.tiny_model import SMALLEST_MODEL

HERE = "http://127.0.0.1:8000"


def view_of(**methods: str) -> CatalogView:
    view = CatalogView()
    for name, method in methods.items():
        name = name.replace("_", "-")
        manifest = Manifest(
            name, "1.2.0", SMALLEST_MODEL, PrefixBody(2), {"method": method, "components": []}
        )
        digest = f"sha256:{name.encode().hex():0<64}"
        view = view.with_changes(ServedPatch(name, "1.2.0", digest, 2, manifest, 0), None)
    return view


DEMO = view_of(pirate="text", detox="trained", refuse_harm="trained", both="compose", lent="peft")


def block_of(view: CatalogView = DEMO, address: str = HERE, **options: Any) -> str:
    return block(Ready(address, **{"model": "smollm2", "policy": OPEN_POLICY, "view": view} | options), "-")


def request_of(text: str) -> list[str]:
    """The words of the block's command, as a shell takes it apart."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("  try"))
    return shlex.split("\n".join(line[12:] for line in lines[first:-1]))


def header_values(words: list[str]) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == "-H"]


def test_the_block_names_address_model_and_each_patch_with_how_it_was_made() -> None:
    rows = block_of().splitlines()[1:]
    assert rows[:5] == [
        "  address   http://127.0.0.1:8000/v1, model smollm2",
        "  trained   detox 1.2.0, refuse-harm 1.2.0",
        "  compiled  pirate 1.2.0",
        "  imported  lent 1.2.0",
        "  prepared  both 1.2.0",
    ]


def test_the_command_can_be_pasted_and_names_a_patch_whose_effect_shows() -> None:
    words = request_of(block_of())
    assert words[:3] == ["curl", "-i", "http://127.0.0.1:8000/v1/chat/completions"]
    assert header_values(words) == ["Content-Type: application/json", "X-Policy-Patch: pirate"]
    assert json.loads(words[words.index("-d") + 1])["model"] == "smollm2"


def test_eighty_columns_are_enough_where_names_are_short() -> None:
    many = view_of(**{f"a-patch-for-{i}": "text" for i in range(40)})
    for view in (DEMO, many, CatalogView()):
        assert max(map(len, block_of(view, needs_key=True).splitlines())) == 80


def test_of_many_patches_some_are_named_and_the_others_counted() -> None:
    text = block_of(view_of(**{f"p{i:02}": "text" for i in range(40)}))
    assert "p11 1.2.0, and 28 more" in " ".join(text.split())
    assert "p12" not in text


def test_an_empty_folder_is_said_and_the_base_model_asked() -> None:
    text = block_of(CatalogView())
    assert "  patches   none yet" in text
    assert header_values(request_of(text)) == ["Content-Type: application/json"]


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://0.0.0.0:8123", "http://127.0.0.1:8123/v1"),
        ("http://[::]:8123", "http://[::1]:8123/v1"),
        ("https://[fd00::1]:443", "https://[fd00::1]:443/v1"),
        ("http://llm.example:80", "http://llm.example:80/v1"),
    ],
)
def test_the_address_is_one_that_a_client_here_can_use(address: str, url: str) -> None:
    assert f"  address   {url}, model" in block_of(address=address)
    assert f"{url}/chat/completions" in request_of(block_of(address=address))


def test_a_unix_socket_is_asked_through_curls_own_flag() -> None:
    text = block_of(address="unix:/run/a b.sock")
    assert "  address   unix:/run/a b.sock, model" in text
    assert request_of(text)[2:5] == ["--unix-socket", "/run/a b.sock", "http://localhost/v1/chat/completions"]


def test_a_key_of_the_server_is_asked_for_by_name_and_never_shown() -> None:
    assert 'Authorization: Bearer $VLLM_API_KEY"' in block_of(needs_key=True)


def policy_of(text: str) -> Policy:
    return parse_policy(f"version: 1\n{text}\n".encode())


def test_the_command_names_a_patch_that_the_policy_allows() -> None:
    words = request_of(block_of(policy=policy_of("others: {allow: [detox]}")))
    assert "X-Policy-Patch: detox" in header_values(words)


def test_where_the_policy_wants_a_key_no_command_is_shown() -> None:
    assert "  try" not in block_of(policy=Policy(others=None))


def test_names_from_outside_move_no_cursor_and_break_no_quotes() -> None:
    text = block_of(model="it's\x1b[2J")
    assert "\x1b" not in text
    words = request_of(text)
    assert json.loads(words[words.index("-d") + 1])["model"] == "it's\x1b[2J"


@pytest.mark.parametrize(("encoding", "rule"), [("utf-8", "─"), ("ascii", "-"), ("latin-1", "-")])
def test_rules_are_ascii_where_the_stream_has_no_better_ones(encoding: str, rule: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(Ready(HERE, "smollm2", DEMO, OPEN_POLICY), stream)
    text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert text.startswith(f"{rule * 2} policypatch is ready {rule}")
    assert text.isascii() == (rule == "-")


def arguments(formatter: str) -> argparse.Namespace:
    logging_config = SimpleNamespace(formatter=formatter)
    return argparse.Namespace(served_model_name=None, model="/m", api_key=None, logging_config=logging_config)


def test_a_log_for_programs_gets_a_line_in_place_of_the_block(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server")
    announce(arguments("json"), HERE, DEMO, OPEN_POLICY)
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["ready on http://127.0.0.1:8000 with 5 patches"]
    announce(arguments("text"), HERE, DEMO, OPEN_POLICY)
    assert "/v1, model /m\n" in capsys.readouterr().out


async def test_it_is_told_once_the_socket_takes_connections(tmp_path: Path) -> None:
    told = asyncio.Event()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with announced(sock, told.set):
            await asyncio.sleep(0.2)
            assert not told.is_set()
            sock.listen()
            await asyncio.wait_for(told.wait(), 30)


async def test_a_server_that_ends_before_is_never_told() -> None:
    told = asyncio.Event()
    with socket.socket() as sock:
        async with announced(sock, told.set):
            await asyncio.sleep(0)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        await asyncio.sleep(0.2)
    assert not told.is_set()
