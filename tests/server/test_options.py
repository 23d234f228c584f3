"""The flags of ``policypatch serve``: their defaults, their readers, and the groups that ``--help`` shows."""

import argparse
from pathlib import Path

import pytest

from server.options import MemoryOptions, PatchOptions, ServeFlags


def read(*words: str) -> ServeFlags:
    parser = argparse.ArgumentParser(exit_on_error=False)
    ServeFlags.add_arguments(parser)
    return ServeFlags.read(parser.parse_args(["--model", "M", "--patches", "P", *words]))


def test_a_flag_that_is_not_given_has_the_default_of_its_field() -> None:
    assert read() == ServeFlags(PatchOptions("M", Path("P")))


def test_sizes_and_repeated_names_are_read() -> None:
    words = ("--patch-host-memory", "2GiB", "--pin-patch", "a", "--pin-patch", "b", "--preload")
    assert read(*words).memory == MemoryOptions(
        patch_host_memory=MemoryOptions().patch_device_memory * 2,  # type: ignore[arg-type]
        pin_patch=frozenset("ab"),
        preload=True,
    )


def test_names_of_one_call_do_not_leak_into_the_next() -> None:
    parser = argparse.ArgumentParser()
    ServeFlags.add_arguments(parser)
    call = ["--model", "M", "--patches", "P"]
    parser.parse_args([*call, "--pin-blocks", "a"])
    assert ServeFlags.read(parser.parse_args(call)).memory.pin_blocks == frozenset()


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--patch-device-memory", "none", "a size such as 512MiB"),
        ("--patch-host-memory", "0", "a size such as 512MiB"),
        ("--pin-blocks-share", "1", "a number between 0 and 1"),
        ("--keep-previous", "-1", "0 or more"),
        ("--pin-patch", "No Name", "expected 1 to 64 characters"),
    ],
)
def test_a_value_that_is_wrong_names_its_flag_and_what_was_expected(
    flag: str, value: str, expected: str
) -> None:
    with pytest.raises(argparse.ArgumentError, match=expected) as caught:
        read(f"{flag}={value}")
    assert caught.value.argument_name == flag


def test_help_shows_the_rooms_and_the_defaults() -> None:
    parser = argparse.ArgumentParser()
    ServeFlags.add_arguments(parser)
    titles = [group.title for group in parser._action_groups[2:]]
    assert titles == ["patches", "policy", "memory", "weights", "admin", "trust", "fleet", "log"]
    shown = " ".join(parser.format_help().split())
    for text in ("such as 512MiB (default: 1.0GiB)", "at most; patches used last come first (default: 0.1)"):
        assert text in shown
