"""Losses against values derived by hand; the derivations stand in the losses' docstrings."""

import math

import pytest
import torch

from patches.train.benign import benign_kl
from patches.train.dpo import dpo_loss, dpo_margins
from patches.train.sft import answer_logprobs, sft_loss, token_logprobs

#: Probabilities 1/4 and 3/4, at two positions.
LOGITS = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
LABELS = torch.tensor([1, 0])


def test_token_logprobs_are_those_of_the_softmax() -> None:
    assert token_logprobs(LOGITS, LABELS).tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 4)])


def test_sft_loss_sums_the_tokens_of_answers() -> None:
    assert float(sft_loss(LOGITS, LABELS)) == pytest.approx(math.log(16 / 3))
    assert float(sft_loss(LOGITS[:1], LABELS[:1])) == pytest.approx(math.log(4 / 3))


def test_answer_logprobs_sum_over_each_row() -> None:
    logits, labels = LOGITS[[0, 1, 1]], LABELS[[0, 1, 1]]
    sums = answer_logprobs(logits, labels, torch.tensor([0, 0, 2]), 3)
    assert sums.tolist() == pytest.approx([math.log(3 / 16), 0, math.log(1 / 4)])


def test_dpo_margin_and_loss_by_hand() -> None:
    values = (torch.tensor([v]) for v in (-10.0, -12.0, -11.0, -11.5))
    margins = dpo_margins(*values, beta=0.1)
    assert margins.tolist() == pytest.approx([0.15])
    assert float(dpo_loss(margins)) == pytest.approx(-math.log(1 / (1 + math.exp(-0.15))))


def test_dpo_loss_is_ln_2_where_patch_and_reference_agree() -> None:
    same = torch.tensor([-3.0, -7.0])
    assert float(dpo_loss(dpo_margins(same, same, same, same, 0.5))) == pytest.approx(2 * math.log(2))
    assert float(dpo_loss(torch.tensor([math.log(3)]))) == pytest.approx(-math.log(3 / 4))


def test_dpo_gradient_widens_the_margin() -> None:
    chosen, rejected = (torch.zeros(1, requires_grad=True) for _ in range(2))
    zero = torch.zeros(1)
    dpo_loss(dpo_margins(chosen, rejected, zero, zero, 0.1)).backward()
    # d(-log sigmoid(m))/dm = -1/2 at m = 0, and dm/d(log p) = ±beta.
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (float(chosen.grad), float(rejected.grad)) == pytest.approx((-0.05, 0.05))


def test_benign_kl_by_hand() -> None:
    assert float(benign_kl(torch.zeros(1, 2), LOGITS[:1])) == pytest.approx(math.log(4 / 3) / 2)
    assert float(benign_kl(LOGITS, LOGITS)) == pytest.approx(0, abs=1e-6)


def test_benign_kl_has_no_gradient_into_the_base() -> None:
    base = torch.zeros(2, 2, requires_grad=True)
    logits = LOGITS.clone().requires_grad_()
    benign_kl(base, logits).backward()
    assert base.grad is None
    # d KL(p||q)/d logits = q - p.
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-1 / 4, 1 / 4])
