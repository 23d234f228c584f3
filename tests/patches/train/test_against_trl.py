"""TRL as oracle: its DPO trainer gives the same log-probabilities, margins and loss on the same pairs.

TRL trains a tiny PEFT prompt-tuning adapter whose embeddings are ours; a pairs file of ours is its data set.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.model import load_model
from patches.pairs.rows import read_pairs
from patches.train.contexts import ALONE
from patches.train.data import Encoder, encode_pairs
from patches.train.soft_prefix import SoftPrefix
from patches.train.stages import Dpo, Reference, pair_logprobs

pytestmark = [pytest.mark.filterwarnings("ignore::Warning")]

BETA = 0.3
#: As the tiny model's template, but a turn ends with its token: TRL would learn what follows it, too.
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture
def folder(make_tiny_model: Callable[..., None], tmp_path: Path) -> Path:
    make_tiny_model(tmp_path / "model", chat_template=TEMPLATE)
    return tmp_path / "model"


@pytest.fixture
def pairs(tmp_path: Path, make_row: Callable[..., dict[str, Any]]) -> Path:
    path = tmp_path / "trl-pairs.jsonl"
    path.write_text("\n".join(json.dumps(make_row(n, split="train")) for n in range(4)))
    return path


def trl_metrics(folder: Path, pairs: Path, embeddings: torch.Tensor, tmp_path: Path) -> dict[str, float]:
    """Loss and rewards of TRL's first evaluation, with the base model (adapter off) as reference."""
    from datasets import Dataset
    from peft import PromptTuningConfig, get_peft_model
    from trl import DPOConfig, DPOTrainer

    model = load_model(folder)
    adapter = get_peft_model(
        model.network, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(embeddings))
    )
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    data = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows])
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        beta=BETA,
        per_device_eval_batch_size=4,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
    )
    with torch.no_grad():
        adapter.prompt_encoder["default"].embedding.weight.zero_()
    trainer = DPOTrainer(
        adapter, args=arguments, train_dataset=data, eval_dataset=data, processing_class=model.tokenizer
    )
    with torch.no_grad():
        adapter.prompt_encoder["default"].embedding.weight.copy_(embeddings)
    return {key: float(value) for key, value in trainer.evaluate().items()}


def test_margins_and_loss_are_those_of_trl(folder: Path, pairs: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(6, 32, generator=generator) * 0.5
    theirs = trl_metrics(folder, pairs, embeddings, tmp_path)
    model = load_model(folder)
    data = encode_pairs(Encoder(model.tokenizer), read_pairs(pairs), 512).train
    start = SoftPrefix(model.network, "prompt", torch.zeros(6, 32))
    prefix = SoftPrefix(model.network, "prompt", embeddings)
    with torch.no_grad():
        alone = torch.stack(pair_logprobs(model.network, start.patched(ALONE), data))
        objective = Dpo(model.network, data, BETA, Reference(model.network, "sft", alone, start))
        loss, told = objective.shares(range(4), prefix, ALONE, 4)
    assert abs(theirs["eval_rewards/margins"]) > 0.05
    assert float(told["margin"]) == pytest.approx(theirs["eval_rewards/margins"], abs=1e-4)
    assert float(told["accuracy"]) == pytest.approx(theirs["eval_rewards/accuracies"])
    assert float(loss) == pytest.approx(theirs["eval_loss"], abs=1e-4)
