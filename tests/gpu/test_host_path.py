"""What the connector writes through vLLM's CUDA path, on a machine with a GPU.

Each scenario is a program of its own, `host_path.py`, since an engine start needs a fresh process; its checks
are this module's assertions. POLICYPATCH_DEMO_MODEL names a folder with the demo model's tokenizer;
POLICYPATCH_NO_KERNELS=1 says that the driver is a stand-in.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device; docs/gpu.md says how to run this"
    ),
]

HERE = Path(__file__).parent
LAYOUTS = ("LBHNC", "BLNHC")


def run_scenario(scenario: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    flags = ["--no-kernels"] if os.environ.get("POLICYPATCH_NO_KERNELS") else []
    program = [str(HERE / "host_path.py"), os.environ["POLICYPATCH_DEMO_MODEL"], scenario, *flags]
    done = subprocess.run(
        [sys.executable, *program],
        env=os.environ | environment | {"PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    checks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"scenario"')]
    assert checks, done.stderr[-4000:]
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return checks


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("full-decode", marks=pytest.mark.feature("CUDA: full graphs")),
        pytest.param("hybrid", marks=pytest.mark.feature("CUDA: full attention beside sliding windows")),
        pytest.param("uncached", marks=pytest.mark.feature("CUDA: no prefix caching")),
        pytest.param("fp8", marks=pytest.mark.feature("CUDA: FP8 KV cache")),
        pytest.param("fp32", marks=pytest.mark.feature("CUDA: float32")),
        pytest.param("triton", marks=pytest.mark.feature("CUDA: Triton attention")),
        pytest.param("eager", marks=pytest.mark.feature("CUDA: eager mode")),
        *(pytest.param(layout, marks=pytest.mark.feature("CUDA: cache layouts")) for layout in LAYOUTS),
    ],
)
def test_prefixes_reach_the_blocks_that_requests_read(scenario: str) -> None:
    if scenario in LAYOUTS:
        checks = run_scenario("full-decode", {"VLLM_KV_CACHE_LAYOUT": scenario})
    else:
        checks = run_scenario(scenario, {})
    assert [check for check in checks if not check["ok"]] == []


@pytest.mark.feature("CUDA: the same graphs as without patches")
def test_the_connector_changes_no_cuda_graph() -> None:
    ours, plain = run_scenario("default", {}), run_scenario("plain", {})
    assert [check for check in ours if not check["ok"]] == []
    keys = ("cudagraph_mode", "full_graphs", "capture_sizes", "max_concurrent_batches", "hybrid_manager")
    assert {key: ours[0][key] for key in keys} == {key: plain[0][key] for key in keys}


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("steering", marks=pytest.mark.feature("CUDA: steering, compiled, with all graphs")),
        pytest.param("steering-graphs", marks=pytest.mark.feature("CUDA: steering, full graphs alone")),
    ],
)
def test_vectors_act_on_the_tokens_of_their_requests(scenario: str) -> None:
    assert [check for check in run_scenario(scenario, {}) if not check["ok"]] == []
