"""The guards of invariant 1, each shown to matter: with it an answer is right or an error, else wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from patches.format import write_patch
from tests.e2e.preload import Preload, import_environment, run_process

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="an engine without its guards")]

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


def _outcome(preload: Preload | None, tiny_model: Path, guards: str, patch_file: Path) -> dict[str, Any]:
    arguments = [str(tiny_model), guards, str(patch_file)]
    done = run_process(
        ["guardless_engine", *arguments],
        patch_file.parent / guards,
        env=os.environ | ENVIRONMENT | ({} if preload is None else import_environment()),
        preload=preload,
        folder=HERE,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert outcome["expected"]["finish_reason"] == "length"
    return outcome


def test_with_all_guards_a_request_that_skips_the_prefix_cache_still_gets_its_prefix(
    preload: Preload | None, tiny_model: Path, patch_file: Path
) -> None:
    outcome = _outcome(preload, tiny_model, "all", patch_file)
    assert outcome["hostile"] == outcome["unchecked"] == outcome["expected"]


def test_with_the_plan_guard_alone_the_request_fails(
    preload: Preload | None, tiny_model: Path, patch_file: Path
) -> None:
    outcome = _outcome(preload, tiny_model, "plan", patch_file)
    assert outcome["unchecked"]["finish_reason"] == "error"
    assert outcome["hostile"] in ({"error": "patch_not_applied"}, outcome["unchecked"])


def test_without_engine_guards_the_client_withholds_an_answer_that_is_wrong(
    preload: Preload | None, tiny_model: Path, patch_file: Path
) -> None:
    outcome = _outcome(preload, tiny_model, "none", patch_file)
    assert outcome["hostile"] == {"error": "patch_not_applied"}
    assert outcome["unchecked"]["finish_reason"] == "length"
    assert outcome["unchecked"]["token_ids"] != outcome["expected"]["token_ids"]
