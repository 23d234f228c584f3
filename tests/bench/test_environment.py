"""What records say about the machine, and what they keep to themselves."""

import json
import socket

import pytest

from bench.servers.environment import cpu_jiffies, describe_environment, without_places


def test_environment_names_machine_and_versions_but_no_host() -> None:
    environment = describe_environment()
    assert environment["cpu_model"]
    assert environment["packages"]["torch"]
    text = json.dumps(environment)
    assert socket.gethostname() not in text


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("/home/somebody/models/demo", "…/demo"),
        ("--model=/home/somebody/demo", "--model=…/demo"),
        ("models/demo", "models/demo"),
        ("--url=http://127.0.0.1:8000", "--url=http://127.0.0.1:8000"),
        ("--eager", "--eager"),
    ],
)
def test_absolute_paths_keep_their_last_part(argument: str, expected: str) -> None:
    assert without_places(argument) == expected


def test_processor_time_grows_and_contains_the_stolen_part() -> None:
    total, stolen = cpu_jiffies()
    assert 0 <= stolen <= total
    assert cpu_jiffies()[0] >= total
