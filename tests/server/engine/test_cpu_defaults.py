"""Defaults for the CPU give way to what the caller set."""

from pathlib import Path

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
