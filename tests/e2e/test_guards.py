"""The guards of invariant 1, each shown to matter: with it an answer is right or an error, else wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from patches.format import write_patch

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
}


@pytest.fixture(scope="module")
def patch_file(tiny_patches: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = tiny_patches.of_random_embeddings("random", 40)
    return write_patch(patch, tmp_path_factory.mktemp("guards"))


def _outcome(tiny_model: Path, guards: str, patch_file: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "guardless_engine.py"), str(tiny_model), guards, str(patch_file)],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parents[1])))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert outcome["expected"]["finish_reason"] == "length"
    return outcome


def test_with_all_guards_a_request_that_skips_the_prefix_cache_still_gets_its_prefix(
    tiny_model: Path, patch_file: Path
) -> None:
    outcome = _outcome(tiny_model, "all", patch_file)
    assert outcome["hostile"] == outcome["unchecked"] == outcome["expected"]


def test_with_the_plan_guard_alone_the_request_fails(tiny_model: Path, patch_file: Path) -> None:
    outcome = _outcome(tiny_model, "plan", patch_file)
    assert outcome["unchecked"]["finish_reason"] == "error"
    assert outcome["hostile"] in ({"error": "patch_not_applied"}, outcome["unchecked"])


def test_without_engine_guards_the_client_withholds_an_answer_that_is_wrong(
    tiny_model: Path, patch_file: Path
) -> None:
    outcome = _outcome(tiny_model, "none", patch_file)
    assert outcome["hostile"] == {"error": "patch_not_applied"}
    assert outcome["unchecked"]["finish_reason"] == "length"
    assert outcome["unchecked"]["token_ids"] != outcome["expected"]["token_ids"]
