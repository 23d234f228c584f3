"""A file of answers by prompt, as a model gives them: what an interrupted run does not ask for again."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from patches.lines import append_lines, whole_lines
from patches.pairs.prompts import Prompt
from patches.pairs.sampler import Answer, Sampler

#: Told how many prompts are answered, and of how many.
Tell = Callable[[int, int], None]


def answer_greedily(
    prompts: Sequence[Prompt], store: Path, sampler: Sampler, batch_size: int, key: str, tell: Tell
) -> dict[str, Answer]:
    """Have a model answer the prompts that the store has no answers to.

    Batches are the same in every run, so that an interrupted run gives what an uninterrupted one would.

    Args:
        prompts: What to answer.
        store: Where answers are kept.
        sampler: The model, which gives one answer to a prompt.
        batch_size: Prompts that are answered at once.
        key: Names the call, for the seeds.
        tell: Told of progress.

    Returns:
        Answers by the id of the prompt, others of the store among them.
    """
    answers = _stored(store)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        if all(prompt.id in answers for prompt in batch):
            continue
        tell(start, len(prompts))
        given = sampler.sample([prompt.messages for prompt in batch], f"{key}{start}")
        new = {prompt.id: one[0] for prompt, one in zip(batch, given, strict=True)}
        append_lines(store, _encoded(new))
        answers |= new
    return answers


def _stored(store: Path) -> dict[str, Answer]:
    rows = map(json.loads, whole_lines(store))
    return {row["id"]: Answer(row["text"], row["is_finished"]) for row in rows}


def _encoded(answers: Mapping[str, Answer]) -> list[str]:
    return [
        json.dumps({"id": key, "text": answer.text, "is_finished": answer.is_finished})
        for key, answer in answers.items()
    ]
