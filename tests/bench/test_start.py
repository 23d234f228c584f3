"""The benchmark of starts: its large file is a valid one, and a command that fails ends it."""

import sys
from pathlib import Path

import pytest

from bench.errors import CheckFailed
from bench.start import MIB_PER_LAYER, build_parser, commands, run_command, write_large_file
from patches.format import find_content
from server.cli import main


def test_the_large_file_is_a_valid_patch_of_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    write_large_file(path, 2)
    content, problems = find_content(path.read_bytes())
    assert content is not None
    assert not problems
    assert content.tensors["kv"].nbytes == 2 * MIB_PER_LAYER * 2**20


def test_what_is_measured_are_commands_that_succeed(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    write_large_file(path, 1)
    for words in commands(path, path).values():
        if words[:3] == [sys.executable, "-m", "server"] and "--help" not in words:
            assert main(list(words[3:])) == 0


def test_a_command_is_measured_by_its_own_processor_time() -> None:
    took = run_command([sys.executable, "-c", "pass"])
    assert took["processor_s"] > 0
    assert took["wall_s"] > 0


def test_a_command_that_fails_gives_no_figure() -> None:
    with pytest.raises(CheckFailed, match="expected status 0, got 3"):
        run_command([sys.executable, "-c", "raise SystemExit(3)"])


def test_by_default_a_thousand_patches_are_compared_with_none() -> None:
    args = build_parser().parse_args(["--model", "m"])
    assert (args.patches, args.file_mib) == (1000, 1008)
