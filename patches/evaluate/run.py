"""Runs tasks over arms, chunk by chunk, with all arms on a chunk before the next one.

So a run that is cut short has every arm on the same items, and what drifts (a machine that heats up) drifts
for all of them. A chunk under an arm is the unit of resuming: its seed depends on its items alone.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from patches.errors import EvaluationError
from patches.evaluate.arms import BASE
from patches.evaluate.data.items import Item, select_items
from patches.evaluate.data.packages import PackageFiles
from patches.evaluate.judges.judges import Judges
from patches.evaluate.log import ItemLog, Row
from patches.evaluate.measures.measure import Context, check_items
from patches.evaluate.subjects.subject import Subject
from patches.evaluate.suite import Task


@dataclass(frozen=True)
class RunOptions:
    """How much is run, and what may be kept."""

    limit: int | None = None
    seed: int = 0
    chunk_size: int = 8
    keeps_all: bool = False
    #: Normalised prompts that training saw; such items are left out.
    excluded_prompts: Collection[str] = ()


@dataclass(frozen=True)
class Step:
    """One chunk of one task under one arm."""

    task: Task
    arm: str
    items: Sequence[Item]


def plan(tasks: Sequence[Task], arms: Sequence[str], files: PackageFiles, options: RunOptions) -> list[Step]:
    """List every step of a run, in order.

    Raises:
        EvaluationError: A task's items can't be read, or are none for its measure.
        DataUnavailable: A package is unavailable.
    """
    return [
        Step(task, arm, chunk)
        for task in tasks
        for chunk in _chunks(_selected(task, files, options), options.chunk_size)
        for arm in arms
    ]


def execute(
    steps: Sequence[Step],
    subjects: Mapping[str, Subject],
    judges: Judges,
    log: ItemLog,
    options: RunOptions,
    advance: Callable[[Step], None] = lambda step: None,
) -> None:
    """Run every step that the log does not have yet.

    Args:
        steps: From ``plan``.
        subjects: By arm; the base arm has to be among them.
        judges: The judges of the run.
        log: Where rows go, and where finished ones are found.
        options: As given to ``plan``.
        advance: Called after each step, done or skipped.

    Raises:
        SubjectFailed: A model or server gave no usable answer; what was measured before is in the log.
    """
    done = {(row.task, row.arm, row.scored.id) for row in log.rows}
    for step in steps:
        missing = [item for item in step.items if (step.task.name, step.arm, item.id) not in done]
        if missing:
            context = Context(judges, subjects[BASE], options.seed, step.task.options, options.keeps_all)
            # The whole chunk, so that sampling is the same as in a run that was not cut off.
            scored = step.task.measure.run(subjects[step.arm], step.items, context)
            wanted = {item.id for item in missing}
            log.append([Row(step.task.name, step.arm, s) for s in scored if s.id in wanted])
        advance(step)


def _selected(task: Task, files: PackageFiles, options: RunOptions) -> list[Item]:
    items = select_items(
        task.items(files), limit=options.limit, seed=options.seed, excluded_prompts=options.excluded_prompts
    )
    try:
        check_items(task.measure, items)
    except EvaluationError as error:
        raise EvaluationError(f"{task.name}: {error}") from None
    return items


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
