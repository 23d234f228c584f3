"""What every question has in common: its command line, the folder of a run, and how it ends.

A run writes records; what people and programs read is made from the records alone. stdout ends with one JSON
line, whatever happened.
"""

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bench.errors import BenchError, CutShort
from bench.report.record import Record, mark_cut_short, read_records, split_cut_short
from bench.report.report_files import Draw, Render, draw_figures, figures_of, markdown_of, write_report
from bench.servers.environment import without_places
from patches.command_parser import CommandParser
from patches.errors import PatchError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)

#: Where runs leave their folders.
OUT = Path("bench/out")
#: What a run's folder holds.
RECORDS = "records.jsonl"

#: Measures, and appends records to the file ``RECORDS`` of the run's folder, which it is given.
Measure = Callable[[Path], None]
#: From parsed arguments, and the command as records show it, to what measures. A ValueError is a mistake in
#: the call.
Prepare = Callable[[argparse.Namespace, str], Measure]


class Main(Protocol):
    """The ``main`` of a question; see ``main_of``."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line, the process's own where ``None``; return the exit code."""


@dataclass(frozen=True)
class Reporting:
    """How the records of a question become what people and programs read.

    Attributes:
        render: makes the Markdown.
        draw: makes the plot; ``None`` for no plot.
        summary: what the JSON line says beside where the records are.
    """

    render: Render = markdown_of
    draw: Draw | None = draw_figures
    summary: Callable[[Sequence[Record]], Mapping[str, Any]] = figures_of


def question_parser(question: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """Make a parser that shows a module's docstring, wrapped to the terminal, and examples."""
    return CommandParser(prog=f"policypatch bench {question}", description=description, epilog=epilog)


def add_out_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says where records, tables and plots go."""
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="DIR",
        help="each run gets a folder there (default: %(default)s)",
    )


def options_of(options: "type[Options]", args: argparse.Namespace) -> "Options":
    """Fill a dataclass from the parsed arguments of its fields' names.

    Raises:
        ValueError: it refuses a value.
    """
    return options(**{field.name: getattr(args, field.name) for field in fields(options)})


def main_of(
    question: str,
    build_parser: Callable[[], argparse.ArgumentParser],
    prepare: Prepare,
    reporting: Reporting = Reporting(),
) -> Main:
    """Make the ``main`` of a question's module.

    Args:
        question: the name of the module.
        build_parser: its command line, with the flag of ``add_out_argument``.
        prepare: checks the arguments and says what measures.
        reporting: what is made of the records.

    Returns:
        What returns 0 where everything was measured (a missed goal is a result), 1 where not, 128 + n after
        signal n, and ends stdout with one JSON object.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser = build_parser()
        arguments = list(sys.argv[1:] if argv is None else argv)
        args = parser.parse_args(arguments)
        command = shlex.join(
            map(without_places, ["python", "-m", f"bench.{question.replace('-', '_')}", *arguments])
        )
        try:
            measure = prepare(args, command)
        except ValueError as error:
            parser.error(str(error))
        return finish(question, measure, args.out, reporting)

    return main


def finish(question: str, measure: Measure, out: Path, reporting: Reporting = Reporting()) -> int:
    """Measure into a folder of its own, report, and end stdout with one JSON line.

    A run that meets its time limit, or is asked to end, reports what it has measured, marked as cut short.

    Returns:
        See ``main_of``.
    """
    # By exception, so that servers are taken down.
    previous = signal.signal(signal.SIGTERM, _end)
    code, reason = 0, None
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{question}-", dir=out))
        code, reason = _measured(measure, folder)
        if reason is not None:
            if not (folder / RECORDS).exists():
                raise CutShort(reason)
            mark_cut_short(folder / RECORDS, reason)
            print(f"bench {question}: cut short: {reason}", file=sys.stderr)
        records = read_records([folder / RECORDS])
        print(write_report(records, folder, render=reporting.render, draw=reporting.draw))
    except (BenchError, PatchError, OSError, ValueError) as error:
        text = f"{reason}; {error}" if reason and not isinstance(error, CutShort) else str(error)
        print(f"bench {question}: {text}", file=sys.stderr)
        print(json.dumps({"question": question, "ok": False, "error": text.splitlines()[0]}))
        return code or 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    cells, _ = split_cut_short(records)
    line = {"question": question, "ok": True, "records": str(folder / RECORDS), **reporting.summary(cells)}
    if reason is not None:
        line |= {"ok": False, "cut_short": reason}
    print(json.dumps(line))
    return code or int(not line["ok"])


def _measured(measure: Measure, folder: Path) -> tuple[int, str | None]:
    """Measure; return the exit code so far, and why it was cut short, ``None`` where it was not."""
    try:
        measure(folder)
    except CutShort as error:
        return 1, str(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "interrupted"
    except _Ended as ended:
        return ended.status, "asked to end"
    finally:
        # A folder with nothing in it helps no reader.
        with contextlib.suppress(OSError):
            folder.rmdir()
    return 0, None


@contextlib.asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Bound what is measured inside.

    Raises:
        CutShort: the time was up.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise CutShort(f"not done after {seconds:g} s; see --time-limit-s") from error


class _Ended(SystemExit):
    """The process was asked to end. An event loop lets a SystemExit through."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _end(signum: int, frame: FrameType | None) -> None:
    raise _Ended(128 + signum)
