"""Making a pairs file: both sides answer every prompt, then pairs are chosen.

Answers are kept beside the result as they come (``NAME.answers.jsonl``), so that an interrupted run
continues where it stopped, and other thresholds cost no new answers. Batches are the same in every run, so an
interrupted run gives what an uninterrupted one would.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patches.errors import PairsError
from patches.lines import append_lines, whole_lines, write_lines
from patches.pairs.prompts import Prompt
from patches.pairs.rows import encode_row
from patches.pairs.sampler import Answer, Sampler
from patches.pairs.scorers import Scorer
from patches.pairs.selection import Candidates, Selected, Selection, select_pairs

#: A reference that gives the base's answer to so many of the prompts or more is not another model.
MAX_SAME_SHARE = 0.98


def answer_prompts(
    prompts: Sequence[Prompt],
    sides: Mapping[str, Sampler],
    store: Path,
    *,
    identity: str,
    batch_size: int,
    tell: Callable[[int], None] = lambda num_done: None,
) -> list[Candidates]:
    """Have both sides answer the prompts that the store has no answers to.

    Args:
        prompts: What to answer.
        sides: ``base`` and ``reference``.
        store: The file of answers.
        identity: Names everything that the answers depend on.
        batch_size: Prompts that are answered at once.
        tell: Gets the number of prompts that are answered.

    Raises:
        PairsError: The store belongs to other settings, or a side can't answer.
        OSError: The store can't be written.
    """
    answers = _stored(store, identity)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        tell(start)
        if all(prompt.id in answers for prompt in batch):
            continue
        conversations = [prompt.messages for prompt in batch]
        # Both sides draw with one seed: where the reference is the base, the answers are equal and give it
        # away.
        given = {side: sampler.sample(conversations, f"{start}") for side, sampler in sides.items()}
        new = {p.id: {side: given[side][i] for side in sides} for i, p in enumerate(batch)}
        _append(store, identity, new)
        answers |= new
    tell(len(prompts))
    return [
        Candidates(prompt, answers[prompt.id]["base"], answers[prompt.id]["reference"]) for prompt in prompts
    ]


def require_other_reference(candidates: Sequence[Candidates]) -> None:
    """Refuse a reference that answers as the base does.

    Raises:
        PairsError: (Nearly) all answers are equal.
    """
    num_same = sum(
        [answer.text for answer in candidate.base] == [answer.text for answer in candidate.reference]
        for candidate in candidates
    )
    if candidates and num_same >= MAX_SAME_SHARE * len(candidates):
        raise PairsError(
            f"reference: gives the base's own answers to {num_same} of {len(candidates)} prompts; "
            "there is nothing to learn from it"
        )


def write_pairs(
    candidates: Sequence[Candidates],
    selection: Selection,
    scorer: Scorer | None,
    output: Path,
    about: Mapping[str, Any],
) -> Selected:
    """Choose pairs and write them, with a report beside them (``NAME.report.json``).

    Args:
        candidates: Prompts with answers.
        selection: Which pairs are kept.
        scorer: Tells risky answers from safe ones.
        output: The pairs file.
        about: What the report says about where the answers came from.

    Raises:
        PairsError: No pair is left.
        OSError: A file can't be written.
    """
    selected = select_pairs(candidates, selection, scorer)
    splits = dict.fromkeys(("train", "validation", "test"), 0)
    for row in selected.rows:
        splits[row.split or "train"] += 1
    report = {**about, "selection": asdict(selection), "counts": selected.counts, "splits": splits}
    if not selected.rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in selected.counts.items() if n)
        raise PairsError(f"pairs: none is left ({reasons}); the answers are kept: choose other thresholds")
    write_lines(output, (encode_row(row) for row in selected.rows))
    write_lines(output.with_suffix(".report.json"), [json.dumps(report, indent=2, ensure_ascii=False)])
    return selected


def _stored(store: Path, identity: str) -> dict[str, dict[str, list[Answer]]]:
    # Stores of older versions may hold half a line that a killed run left, which is no loss.
    rows = [row for line in whole_lines(store) if (row := _parsed(line)) is not None]
    if not store.exists():
        return {}
    if not rows or rows[0].get("identity") != identity:
        raise PairsError(
            f"{store}: holds answers that were drawn with other settings; remove it, or choose another output"
        )
    return {
        row["id"]: {side: [Answer(**answer) for answer in row[side]] for side in ("base", "reference")}
        for row in rows[1:]
    }


def _parsed(line: str) -> Any:
    try:
        return json.loads(line) if line else None
    except json.JSONDecodeError:
        return None


def _append(store: Path, identity: str, new: Mapping[str, Mapping[str, Sequence[Answer]]]) -> None:
    lines = [] if store.exists() else [json.dumps({"identity": identity})]
    for prompt_id, sides in new.items():
        row = {side: [asdict(answer) for answer in answers] for side, answers in sides.items()}
        lines.append(json.dumps({"id": prompt_id, **row}, ensure_ascii=False))
    append_lines(store, lines)
