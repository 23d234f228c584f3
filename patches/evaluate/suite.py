"""Suites: data files that say which measure runs over which items.

A suite is YAML::

    description: Compliance with harmful requests.
    tasks:
      plain:
        measure: harm                # a name of patches.evaluate.measures.measure
        data:
          - {set: harmbench}         # a data set of patches.evaluate.data.sources
          - {file: my-prompts.jsonl} # beside the suite file; one {"prompt": …} a line
        wrappers: [aim]              # optional: jailbreak templates, dealt out in turn
        options: {max_tokens: 96}    # optional: for the measure

The built-in ones lie in ``suites/``; ``--suite FILE.yaml`` takes any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from patches.errors import EvaluationError
from patches.evaluate.data.items import Item, parse_items
from patches.evaluate.data.packages import PackageFiles
from patches.evaluate.data.sources import jailbreak_templates, source_items, wrap
from patches.evaluate.measures.measure import Measure, load_measure
from patches.text import read_text, said

BUILT_IN = ("harm", "overrefusal", "toxicity", "bias", "fluency", "capability", "latency")
_TASK_KEYS = {"measure", "data", "wrappers", "options"}


@dataclass(frozen=True)
class Task:
    """One measure over one set of items; its name is ``suite/task``."""

    name: str
    measure_name: str
    measure: Measure
    data: tuple[Mapping[str, str], ...]
    wrappers: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Files under ``data`` are looked up here.
    folder: Path = Path()

    def items(self, files: PackageFiles) -> list[Item]:
        """Read all items.

        Raises:
            EvaluationError: A file of prompts can't be read or is malformed.
            DataUnavailable: A package is unavailable.
        """
        items = [item for source in self.data for item in self._source(source, files)]
        if not items:
            raise EvaluationError(f"{self.name}: has no items")
        if not self.wrappers:
            return items
        templates = list(jailbreak_templates(list(self.wrappers), files).items())
        return [_wrapped(item, *templates[place % len(templates)]) for place, item in enumerate(items)]

    def _source(self, source: Mapping[str, str], files: PackageFiles) -> list[Item]:
        if "set" in source:
            return source_items(source["set"], files)
        path = self.folder / source["file"]
        return parse_items(_read(path), path.stem)


@dataclass(frozen=True)
class Suite:
    """Tasks under one name."""

    name: str
    description: str
    tasks: tuple[Task, ...]


def load_suite(name: str) -> Suite:
    """Load a built-in suite by name, or any by the path of its YAML file.

    Raises:
        EvaluationError: No such suite exists, or it is malformed; the message names the key.
    """
    if name in BUILT_IN:
        text = resources.files("patches.evaluate").joinpath("suites", f"{name}.yaml").read_text("utf-8")
        return _parse(text, name, Path())
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise EvaluationError(f"suite: unknown {name!r}; known are {', '.join(BUILT_IN)}, and any FILE.yaml")
    return _parse(_read(path), path.stem, path.parent)


def read_yaml(text: str, where: str) -> Any:
    """Read YAML, data only.

    Raises:
        EvaluationError: It is malformed, or PyYAML is not installed.
    """
    try:
        from patches.yaml_text import parse_yaml
    except ImportError as error:
        raise EvaluationError("PyYAML is not installed; install policypatch[eval]") from error
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise EvaluationError(f"{where}: {error}") from None


def _parse(text: str, name: str, folder: Path) -> Suite:
    document = read_yaml(text, name)
    if not isinstance(document, dict) or not isinstance(document.get("tasks"), dict) or not document["tasks"]:
        raise EvaluationError(f"{name}: expected an object with tasks")
    if unknown := sorted(map(str, set(document) - {"description", "tasks"})):
        raise EvaluationError(f"{name}: unknown keys {', '.join(unknown)}")
    description = document.get("description", "")
    if not _is_text(description) or not all(map(_is_text, document["tasks"])):
        raise EvaluationError(f"{name}: expected texts as the description and the names of tasks")
    tasks = tuple(_parse_task(f"{name}/{key}", value, folder) for key, value in document["tasks"].items())
    return Suite(name, description, tasks)


def _parse_task(name: str, document: Any, folder: Path) -> Task:
    if not isinstance(document, dict) or (unknown := sorted(map(str, set(document) - _TASK_KEYS))):
        found = ", ".join(unknown) if isinstance(document, dict) else type(document).__name__
        raise EvaluationError(f"{name}: expected {', '.join(sorted(_TASK_KEYS))}, got {found}")
    data = document.get("data")
    if not isinstance(data, list) or not data or not all(map(_is_source, data)):
        raise EvaluationError(f"{name}: data: expected a list of {{set: NAME}} or {{file: PATH}}")
    wrappers, options = document.get("wrappers", []), document.get("options", {})
    if not isinstance(wrappers, list) or not all(map(_is_text, wrappers)) or not isinstance(options, dict):
        raise EvaluationError(f"{name}: expected wrappers as a list of names, options as an object")
    measure_name = document.get("measure")
    if not isinstance(measure_name, str):
        raise EvaluationError(f"{name}: measure: expected a text, got {measure_name!r}")
    measure = load_measure(measure_name)
    return Task(name, measure_name, measure, tuple(data), tuple(wrappers), options, folder)


def _is_source(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and set(entry) in ({"set"}, {"file"}) and all(map(_is_text, entry.values()))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _wrapped(item: Item, name: str, template: str) -> Item:
    return replace(
        item,
        id=f"{item.id}+{name}",
        category=name.replace("_", " "),
        prompt=wrap(template, item.prompt),
        wrapped=item.prompt,
    )


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: can't be read: {said(error)}") from None
