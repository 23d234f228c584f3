"""One evaluation from arms to summary: what the command calls, and training at its end."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patches.compose import compose_patches, composed_name
from patches.errors import EvaluationError, ModelUnusable
from patches.evaluate.arms import (
    BASE,
    NUM_DIGEST_CHARS,
    SYSTEM,
    Arm,
    changes_weights,
    composition_orders,
    patch_arms,
    require_distinct,
    steers,
)
from patches.evaluate.data.packages import PackageFiles
from patches.evaluate.judges.calibration import calibrate
from patches.evaluate.judges.judges import Judges
from patches.evaluate.log import ItemLog
from patches.evaluate.report.summary import Summary, summarise
from patches.evaluate.run import RunOptions, Step, execute, plan
from patches.evaluate.subjects.remote import Endpoint, HttpSubject
from patches.evaluate.subjects.subject import Subject
from patches.evaluate.suite import BUILT_IN, Task, load_suite
from patches.format import Patch
from patches.label import Label
from patches.model import LoadedModel, load_model
from patches.train.baselines import BASELINES


def offline_arms(
    model: LoadedModel, patches: Sequence[Patch], *, compose: str | None, system_text: str | None
) -> list[Arm]:
    """List the arms of a run in this process; compositions are made here.

    Args:
        model: The model.
        patches: Each is an arm.
        compose: ``prepared`` or ``joined``: every order of them is an arm, too.
        system_text: The policy as a system message.

    Raises:
        ComposeError: A patch can't be composed in this form.
        BaseModelMismatch: A patch belongs to another model.
        EvaluationError: Two arms have one name, or two files one digest.
    """
    own = patch_arms(patches)
    arms = [*_plain_arms(system_text), *own]
    require_distinct(arms)
    if compose and any(changes_weights(patch) for patch in patches):
        raise EvaluationError("compose: expected patches that a request names, got one that changes weights")
    names = [patch.manifest.name for patch in patches]
    for order in composition_orders(names, _vectors(patches)) if compose else []:
        parts = tuple(patches[i] for i in order if not steers(patches[i]))
        vector = patches[order[-1]] if steers(patches[order[-1]]) else None
        name = ", ".join(own[i].name for i in order)
        arm = Arm(name, "composition", selection=name, vector=vector)
        if len(parts) == 1:
            arms.append(replace(arm, patch=parts[0]))
        elif compose == "joined":
            arms.append(replace(arm, kind="joined composition", parts=parts))
        else:
            label = Label(composed_name([part.manifest.name for part in parts]), "1.0.0")
            composed = compose_patches(model, parts, label)
            arms.append(replace(arm, patch=composed, digest=None if vector else composed.digest))
    return arms


def _vectors(patches: Sequence[Patch | str]) -> set[int]:
    return {i for i, patch in enumerate(patches) if isinstance(patch, Patch) and steers(patch)}


def remote_arms(patches: Sequence[Patch | str], *, compose: str | None, system_text: str | None) -> list[Arm]:
    """List the arms of a run against a server, which has to have the patches, and the compositions, loaded.

    Args:
        patches: Files, asked for by digest, or names as ``X-Policy-Patch`` has them.
        compose: ``prepared`` or ``joined``: ask for every order of them, too, composed like this.
        system_text: The policy as a system message.

    Raises:
        EvaluationError: Two arms have one name, or two files one digest.
    """
    if changing := [p for p in patches if isinstance(p, Patch) and changes_weights(p)]:
        raise EvaluationError(
            f"patch: expected what a request names, got {changing[0].manifest.name}, which changes weights: "
            "`policypatch patches activate` it, and compare what the server's base is before and after; or "
            "leave out --url"
        )
    of_files = iter(patch_arms([patch for patch in patches if isinstance(patch, Patch)]))
    own = [Arm(p, "patch", selection=p) if isinstance(p, str) else next(of_files) for p in patches]
    arms = [*_plain_arms(system_text), *own]
    require_distinct(arms)
    names = [arm.name.split("@")[0] for arm in own]
    for order in composition_orders(names, _vectors(patches)) if compose else []:
        selection = ", ".join(_short_selection(own[i]) for i in order)
        name = ", ".join(own[i].name for i in order)
        arms.append(Arm(name, "composition", selection=selection, form=compose))
    return arms


def _short_selection(arm: Arm) -> str:
    """Shorten a digest: three whole ones are more than a header may hold."""
    selection = str(arm.selection)
    return selection if arm.digest is None else selection[: selection.index("@") + 1 + NUM_DIGEST_CHARS]


def baseline_subject(
    name: str, model: str, folder: Path, *, dtype: str, device: str, batch_size: int
) -> Subject:
    """Load the model once more, with a saved baseline in it.

    Args:
        name: Of the baseline, in ``patches.train.baselines``.
        model: Folder or hub id of the model.
        folder: What ``policypatch train`` saved.
        dtype: To run in.
        device: Where to compute.
        batch_size: Prompts at once.

    Raises:
        EvaluationError: The folder holds no such baseline, or what reads it is not installed.
    """
    from patches.evaluate.subjects.local import TransformersSubject

    module = BASELINES[name].module()
    module.require_saved(folder)
    merged, digest = module.merged(load_model(model, dtype=dtype, device=device), folder)
    return TransformersSubject(
        merged, Arm(f"{name}:{folder.name}", name, digest=digest), batch_size=batch_size
    )


def offline_subjects(model: LoadedModel, arms: Sequence[Arm], *, batch_size: int) -> dict[str, Subject]:
    """Make the subjects of arms that run in this process."""
    from patches.evaluate.subjects.local import TransformersSubject

    return {arm.name: TransformersSubject(model, arm, batch_size=batch_size) for arm in arms}


def remote_subjects(endpoint: Endpoint, tokenizer: Any, arms: Sequence[Arm]) -> dict[str, Subject]:
    """Make the subjects of arms that a server answers.

    Raises:
        ModelUnusable: There is no tokenizer.
    """
    if tokenizer is None:
        raise ModelUnusable("model: has no tokenizer that can be loaded")
    return {arm.name: HttpSubject(endpoint, tokenizer, arm) for arm in arms}


def load_tasks(suites: Sequence[str]) -> list[Task]:
    """Load the tasks of suites by name or file; ``all`` means every built-in one.

    Raises:
        EvaluationError: There is no such suite, or two have one name.
    """
    names = [name for suite in suites for name in (BUILT_IN if suite == "all" else [suite])]
    loaded = [load_suite(name) for name in dict.fromkeys(names)]
    if len({suite.name for suite in loaded}) != len(loaded):
        raise EvaluationError("suites: expected names that differ; rename one of the files")
    return [task for suite in loaded for task in suite.tasks]


def evaluate(
    subjects: Mapping[str, Subject],
    tasks: Sequence[Task],
    files: PackageFiles,
    options: RunOptions,
    folder: Path,
    setup: Mapping[str, Any],
    *,
    overwrite: bool = False,
    start: Callable[[Sequence[Step]], None] = lambda steps: None,
    advance: Callable[[Step], None] = lambda step: None,
) -> Summary:
    """Measure everything that the folder's log does not have yet, and sum up.

    Args:
        subjects: By arm, the base among them, in the order of the reports.
        tasks: What is measured.
        files: Where data sets and judges come from.
        options: How much.
        folder: Where the log goes.
        setup: What else decides the figures; it is kept with them.
        overwrite: Start over where the folder holds another run.
        start: Told every step before the first.
        advance: Told each step when it is done.

    Raises:
        EvaluationError: The call can't be carried out as asked.
        SubjectFailed: A model or server gave no usable answer; a second call continues from there.
        DataUnavailable: A data set or judge is unavailable.
    """
    judges = Judges(files)
    steps = plan(tasks, list(subjects), files, options)
    complete = {
        **setup,
        "arms": {name: _description(subject.arm) for name, subject in subjects.items()},
        "tasks": {task.name: _task_digest(task, steps) for task in tasks},
        "limit": options.limit,
        "seed": options.seed,
        "chunk_size": options.chunk_size,
        "num_excluded_prompts": len(options.excluded_prompts),
        "keeps_all": options.keeps_all,
    }
    log = ItemLog(folder, complete, overwrite=overwrite)
    start(steps)
    names = dict.fromkeys(m.judge for task in tasks for m in task.measure.metrics if m.judge is not None)
    calibrations = [calibrate(name, judges, files) for name in names]
    execute(steps, subjects, judges, log, options, advance)
    return summarise(log.rows, tasks, list(subjects), calibrations, complete)


def _plain_arms(system_text: str | None) -> list[Arm]:
    system = [] if system_text is None else [Arm(SYSTEM, "system", system_text=system_text.strip())]
    return [Arm(BASE, "base"), *system]


def _description(arm: Arm) -> str:
    if arm.system_text is not None:
        digest = hashlib.sha256(arm.system_text.encode()).hexdigest()
        return f"system message, sha256:{digest[:16]}"
    return arm.kind if arm.digest is None else f"{arm.kind}, {arm.digest[:23]}"


def _task_digest(task: Task, steps: Sequence[Step]) -> str:
    """Digest what a task asks and of what, so that a log is not continued over other items."""
    items = [(item.id, item.prompt, item.choices) for s in steps if s.task is task for item in s.items]
    document = [task.measure_name, list(task.wrappers), dict(task.options), list(dict.fromkeys(items))]
    return "sha256:" + hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
