"""Defaults for the CPU give way to what the caller set."""

from pathlib import Path

import pytest

from server.engine.cpu_defaults import (
    cpu_arguments,
    cpu_environment,
    num_memory_nodes,
    offline_environment,
)


def test_flags_are_added_where_none_was_given() -> None:
    assert cpu_arguments([]) == ["--enforce-eager", "--block-size", "32"]


def test_given_flags_win() -> None:
    assert cpu_arguments(["--block-size=64", "--no-enforce-eager"]) == []
    assert cpu_arguments(["--block_size", "64"]) == ["--enforce-eager"]


@pytest.mark.parametrize(
    ("given", "is_traced"),
    [
        (["--pipeline-parallel-size", "2"], True),
        (["--pipeline_parallel_size=2", "--port", "1"], True),
        (["-pp", "2"], True),
        (["--pipeline-parallel-size", "1"], False),
        (["--pipeline-parallel-size", "two"], False),
        (["-tp", "2"], False),
    ],
)
def test_pipeline_stages_are_traced_since_they_need_the_warm_up(given: list[str], is_traced: bool) -> None:
    added = cpu_arguments(given)
    assert ("--compilation-config" in added, "--enforce-eager" in added) == (is_traced, not is_traced)
    assert "--compilation-config" not in cpu_arguments([*given, "--enforce-eager"])


def test_given_variables_win() -> None:
    assert "VLLM_CPU_KVCACHE_SPACE" not in cpu_environment({"VLLM_CPU_KVCACHE_SPACE": "8"}, 1)
    assert cpu_environment({}, 2)["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "2"


def test_ranks_beyond_the_memory_nodes_share_cores_instead_of_being_bound(tmp_path: Path) -> None:
    for name in ("node0", "node1", "possible"):
        (tmp_path / name).touch()
    assert num_memory_nodes(tmp_path) == 2
    assert "VLLM_CPU_OMP_THREADS_BIND" not in cpu_environment({}, 1)
    crowded = cpu_environment({}, 4096)
    assert (crowded["VLLM_CPU_OMP_THREADS_BIND"], crowded["OMP_NUM_THREADS"]) == ("nobind", "1")
    assert "OMP_NUM_THREADS" not in cpu_environment({"OMP_NUM_THREADS": "3"}, 4096)


def test_only_a_local_model_switches_the_hub_off(tmp_path: Path) -> None:
    assert offline_environment(str(tmp_path), {})["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in offline_environment("owner/model", {})
    assert "HF_HUB_OFFLINE" not in offline_environment(str(tmp_path), {"HF_HUB_OFFLINE": "0"})
