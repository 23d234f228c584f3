"""Options that every test folder shares, and what two workers at once need."""

import functools
import os
from typing import Any

import pytest

from tests.e2e.servers import group_of

group = functools.cache(group_of)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="write the golden files anew instead of comparing with them",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep in one worker what shares a server, where `--dist loadfile` keeps together single files."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ServerScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(config.rootpath / nodeid.partition("::")[0])

    return ServerScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left with it at the end."""
    items.sort(key=lambda item: (not group(item.path).startswith("server "), "e2e" not in item.keywords))


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        # Each worker would take every core, and so would the servers that it starts; bound to cores, they
        # would all be bound to the same ones.
        torch.set_num_threads(1)
        num_workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_workers)))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
