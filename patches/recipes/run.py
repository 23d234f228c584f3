"""Takes the steps of a plan: what is done is left as it is, and what was made from something else is refused.

Beside its results each step leaves ``STEP.made.json``: what it was made from. A result without such a record,
such as one that was copied there, counts as done.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from patches.canonical import JsonValue
from patches.durable import write_json_atomically
from patches.errors import RecipeInvalid
from patches.pairs.answers import Tell
from patches.pairs.rows import file_digest
from patches.recipes.plan import Step


@dataclass(frozen=True)
class Workshop:
    """What carries steps out, and what is told of progress."""

    #: Runs `policypatch` with these arguments; returns its exit code and what it printed.
    call: Callable[[Sequence[str]], tuple[int, str]]
    #: Digest of the base model's weights.
    weights_digest: str
    begin: Callable[[int, Step], None] = lambda number, step: None
    end: Callable[[int, Step, str], None] = lambda number, step, summary: None
    skip: Callable[[int, Step], None] = lambda number, step: None
    tell: Tell = lambda done, total: None


def is_done(step: Step, weights_digest: str) -> bool:
    """Look whether a step is done.

    Raises:
        RecipeInvalid: It is, but from something else than what it would be made from now.
    """
    if not all(path.exists() for path in step.outputs):
        return False
    record = _record(step)
    if record.exists():
        before, now = json.loads(record.read_text("utf-8")), _made_from(step, weights_digest)
        # A need that was cleared away since says nothing against the result.
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise RecipeInvalid(
                f"{step.outputs[0]}: was made from something else (different: {', '.join(changed)}); "
                f"choose another --output, or remove {step.folder} to make it anew"
            )
    return True


def take(steps: Sequence[Step], workshop: Workshop) -> int:
    """Take every step that is not done.

    Returns:
        0, or the exit code of the call that failed.

    Raises:
        PatchError: A step can't be carried out.
    """
    for number, step in enumerate(steps, 1):
        if is_done(step, workshop.weights_digest):
            workshop.skip(number, step)
            continue
        workshop.begin(number, step)
        step.folder.mkdir(parents=True, exist_ok=True)
        made_from = _made_from(step, workshop.weights_digest)
        if step.words is None:
            summary = step.work(workshop.tell)
        else:
            code, summary = workshop.call(step.words())
            if code:
                return code
        write_json_atomically(_record(step), made_from)
        workshop.end(number, step, summary)
    return 0


def _record(step: Step) -> Path:
    return step.folder / f"{step.name}.made.json"


def _made_from(step: Step, weights_digest: str) -> dict[str, JsonValue]:
    digests: Mapping[str, JsonValue] = {
        name: file_digest(path) for name, path in step.needs.items() if path.exists()
    }
    weights = {"weights": weights_digest} if step.asks_model else {}
    # By way of JSON, as it is compared with what was read from there.
    return {**json.loads(json.dumps(dict(step.setup))), **digests, **weights}
