"""Both servers are started alike."""

import argparse
from pathlib import Path

import pytest

from bench.errors import BenchError, CheckFailed
from bench.servers import launch
from bench.servers.launch import (
    EngineOptions,
    add_engine_arguments,
    engine_options,
    ours_server,
    plain_server,
    prepare_patch,
    require_same_environment,
)

OPTIONS = EngineOptions("demo", extra_arguments=("--seed", "3"), extra_environment=("A=b=c",))


def flags_after_port(command: list[str]) -> list[str]:
    return command[command.index("--port") + 2 :]


def test_both_servers_get_the_same_flags_and_environment(tmp_path: Path) -> None:
    plain, ours = plain_server(OPTIONS, tmp_path), ours_server(OPTIONS, tmp_path, tmp_path)
    assert flags_after_port(list(plain.command)) == flags_after_port(list(ours.command))
    assert plain.environment == ours.environment
    assert plain.environment["A"] == "b=c"
    assert plain.port != ours.port
    assert ours.command[1:6] == ["-m", "server", "serve", "--model", "demo"]


@pytest.mark.parametrize(
    ("is_installed", "command"),
    [
        (True, ["-m", "vllm.entrypoints.cli.main", "serve", "demo"]),
        (False, ["-m", "vllm.entrypoints.launchers.api_server.entry", "--model", "demo"]),
    ],
    ids=["gpu build", "cpu build"],
)
def test_plain_server_is_vllms_own_in_either_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool, command: list[str]
) -> None:
    monkeypatch.setattr(launch, "_is_installed", lambda distribution: is_installed)
    assert plain_server(OPTIONS, tmp_path).command[1:5] == command


def test_servers_listen_on_this_machine_only(tmp_path: Path) -> None:
    command = list(plain_server(OPTIONS, tmp_path).command)
    assert command[command.index("--host") + 1] == "127.0.0.1"


@pytest.mark.parametrize(("is_gpu", "block_size", "eager"), [(True, "16", False), (False, "32", True)])
def test_block_size_and_eager_mode_follow_the_device(is_gpu: bool, block_size: str, eager: bool) -> None:
    arguments = OPTIONS.arguments(is_gpu)
    assert arguments[arguments.index("--block-size") + 1] == block_size
    assert ("--enforce-eager" in arguments) is eager
    assert arguments[-2:] == ["--seed", "3"]


def test_command_line_defaults_are_the_dataclass_defaults() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    add_engine_arguments(parser)
    assert engine_options(parser.parse_args(["--model", "m"])) == EngineOptions("m")


def test_environment_entry_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="expected NAME=VALUE, got 'A'"):
        EngineOptions("demo", extra_environment=("A",)).environment(is_gpu=True)


def test_servers_that_differ_in_speed_variables_are_refused() -> None:
    require_same_environment({"plain": {"OMP_NUM_THREADS": "1"}, "ours": {"OMP_NUM_THREADS": "1"}})
    with pytest.raises(CheckFailed, match="LD_PRELOAD: expected one value"):
        require_same_environment({"plain": {}, "ours": {"LD_PRELOAD": "libtcmalloc.so"}})


def test_compiling_that_fails_shows_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.sys, "executable", "false")
    with pytest.raises(BenchError, match="policypatch compile: ended with status 1"):
        prepare_patch(OPTIONS, tmp_path, policy_text=tmp_path / "p.txt", patch=None, is_raw=False)
