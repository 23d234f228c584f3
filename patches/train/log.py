"""What a run leaves to read: a log as it goes, TensorBoard where it is installed, a report at the end."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from patches.canonical import JsonValue
from patches.format import Patch
from patches.lines import write_lines
from patches.train.export import best_validations

LOG = "log.jsonl"


class StepLog:
    """Appends each record to ``log.jsonl`` as one JSON line, with the time, and feeds TensorBoard.

    The folder appears with the first record: a run that is refused before leaves nothing behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None
        self._board: Any = None

    def tell(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Line buffering: what happened before a crash is there to read.
            self._file = (self._folder / LOG).open("a", encoding="utf-8", buffering=1)
            self._board = _tensorboard(self._folder)
        self._file.write(json.dumps({"time": round(time.time(), 3), **record}) + "\n")
        if self._board is not None and "step" in record and "loss" in record:
            kind = "validation" if record.get("is_validation") else "train"
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{record['stage']}-{kind}/{name}", value, record["step"])

    def close(self) -> None:
        """Finish both."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def write_report(
    folder: Path, patch: Patch, curves: list[dict[str, Any]], counts: Mapping[str, JsonValue]
) -> Path:
    """Write ``report.json`` and ``report.md``.

    Returns:
        The Markdown page.

    Raises:
        OSError: They can't be written.
    """
    origin = patch.manifest.origin
    document = {
        "patch": f"{patch.manifest.name}@{patch.manifest.version}",
        "digest": patch.digest,
        "config": origin["config"],
        "counts": counts,
        "best_validations": best_validations(curves),
        "curves": origin["curves"],
    }
    write_lines(folder / "report.json", [json.dumps(document, indent=1)])
    write_lines(folder / "report.md", [_page(patch, curves, counts)])
    return folder / "report.md"


def _page(patch: Patch, curves: list[dict[str, Any]], counts: Mapping[str, JsonValue]) -> str:
    manifest = patch.manifest
    lines = [f"# {manifest.name}@{manifest.version}", "", f"`{patch.digest}`", "", "## Data", ""]
    lines += [f"- {name.replace('_', ' ')}: {_shown(value)}" for name, value in counts.items()]
    lines += [
        "",
        "## Validation",
        "",
        "| stage | step | loss | margin | accuracy | benign KL |",
        "|" + " --- |" * 6,
    ]
    for record in curves:
        if record.get("is_validation"):
            values = [record.get(name) for name in ("loss", "margin", "accuracy", "benign_kl")]
            cells = [str(record["stage"]), str(record["step"]), *map(_shown, values)]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Configuration", ""]
    lines += [f"- {name}: {_shown(value)}" for name, value in sorted(manifest.origin["config"].items())]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number}" for name, number in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
