"""What every question has in common: a command line, and how it ends.

A run writes records; what people and programs read is made from the records alone. stdout ends with one JSON
line, whatever happened.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from bench.errors import BenchError
from bench.report.arm_report import figures_of, write_report
from bench.report.record import Record, read_records
from patches.errors import PatchError

#: Where runs leave their folders.
OUT = Path("bench/out")


def question_parser(question: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """Make a parser that shows a module's docstring, and examples, as they are written."""
    return argparse.ArgumentParser(
        prog=f"policypatch bench {question}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_out_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says where records, tables and plots go."""
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="DIR",
        help="each run gets a folder there (default: %(default)s)",
    )


def finish(
    question: str,
    run: Callable[[], Path],
    *,
    report: Callable[[Sequence[Record], Path], str] = write_report,
    summary: Callable[[Sequence[Record]], Mapping[str, Any]] = figures_of,
) -> int:
    """Run, report, and end stdout with one JSON line.

    Args:
        question: what is asked.
        run: measures; gives the path of the records.
        report: writes a report of records into a folder and gives it as Markdown.
        summary: what the JSON line says beside where the records are.

    Returns:
        0 where everything could be measured, 1 where not. A missed goal is a result, not a failure.
    """
    # By exception, so that servers are taken down.
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        path = run()
        records = read_records([path])
        print(report(records, path.parent))
    except (BenchError, PatchError, OSError, ValueError) as error:
        print(f"bench {question}: {error}", file=sys.stderr)
        print(json.dumps({"question": question, "ok": False, "error": str(error).splitlines()[0]}))
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(json.dumps({"question": question, "ok": True, "records": str(path), **summary(records)}))
    return 0


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def markdown_into(render: Callable[[Sequence[Record]], str]) -> Callable[[Sequence[Record], Path], str]:
    """Make a report for ``finish`` of what renders Markdown only."""

    def write(records: Sequence[Record], folder: Path) -> str:
        text = render(records)
        (folder / "report.md").write_text(text, encoding="utf-8")
        return text

    return write
