"""Options that every test folder shares, and what two workers at once need."""

import os
from pathlib import Path

import pytest

E2E = Path(__file__).parent / "e2e"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="write the golden files anew instead of comparing with them",
    )


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        # Each worker would take every core.
        torch.set_num_threads(1)


# pytest-xdist reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep modules together, and everything that starts servers in one worker: they share what they can."""
    for item in items:
        group = "servers" if item.path.is_relative_to(E2E) else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
