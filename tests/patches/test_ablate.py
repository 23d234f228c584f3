"""The tool of ablations: its files fit the command, and it counts what a first token decides."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from patches.model import LoadedModel
from patches.pairs.rows import PairRow
from patches.recipes.recipe import read_recipe
from patches.train.data import Encoder, Sample
from patches.train.forward import answer_logits
from server.commands import train
from tools import ablate

ABLATIONS = sorted((Path(__file__).resolve().parents[2] / "examples" / "ablations").glob("*.yaml"))
RECIPE = read_recipe(ABLATIONS[0].parents[1] / "recipes" / "refuse-harm.yaml")
(REFUSAL,) = RECIPE.reference.say


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_the_command_knows_every_option_of_an_ablation(path: Path) -> None:
    ablation = yaml.safe_load(path.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    for options in (ablation["train"], *ablation["variants"].values()):
        assert {f"--{name}" for name in options} <= known
    assert read_recipe(path.parent / ablation["recipe"]).contrast is not None


def test_a_decision_is_the_lead_of_the_refusals_first_token(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bias of that token between the leads of two prompts, one of them is refused."""
    monkeypatch.setattr(ablate, "subject", lambda *_: (tiny_model, None))
    encoder = Encoder(tiny_model.tokenizer)
    chats: list[Any] = [[{"role": "user", "content": text}] for text in ("say 1", "what is it")]
    first = encoder.sample(chats[0], REFUSAL, False).answer_ids[0]
    leads = []
    for chat in chats:
        logits = answer_logits(tiny_model.network, None, [Sample(encoder.prompt(chat), (first,))]).logits[0]
        leads.append(float(logits[first] - logits[torch.arange(len(logits)) != first].max()))
    harmful, harmless = (0, 1) if leads[0] > leads[1] else (1, 0)
    rows = [PairRow("a", tuple(chats[harmful]), REFUSAL, "Yes", "validation")]
    rows.append(PairRow("b", tuple(chats[harmless]), "Yes", REFUSAL, "validation"))
    (tmp_path / "run").mkdir()
    steps = [{"benign_kl": 9.0}] * 2 + [{"benign_kl": 0.5}] * 10
    (tmp_path / "run" / "log.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    told = ablate.measure(RECIPE, tmp_path, "m", rows)
    assert (told["num_harmful"], told["num_harmless"]) == (1, 1)
    assert told["auc"] == 1
    assert told["harmful_refused"] == float(max(leads) > 0)
    assert told["harmless_refused"] == float(min(leads) > 0)
    assert told["benign_kl"] == 0.5
    swapped = [replace(row, chosen=row.rejected, rejected=row.chosen) for row in rows]
    assert ablate.measure(RECIPE, tmp_path, "m", swapped)["auc"] == 0


def test_the_table_has_a_row_for_each_variant_that_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "N-4").mkdir()
    told = {"harmful_refused": 0.5, "harmless_refused": 0.02, "auc": 0.9, "benign_kl": 0.1}
    (tmp_path / "N-4" / "decisions.json").write_text(json.dumps(told))
    ablate.print_table(tmp_path, ["recipe", "N 4"])
    assert capsys.readouterr().out.splitlines()[2:] == ["| N 4 | 50% | 2% | 0.900 | 0.10 |"]
