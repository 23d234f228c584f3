"""Options that every test folder shares, and what two workers at once need."""

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="write the golden files anew instead of comparing with them",
    )


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        # Each worker would take every core, and so would the servers that it starts; bound to cores, they
        # would all be bound to the same ones.
        torch.set_num_threads(1)
        num_workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_workers)))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
