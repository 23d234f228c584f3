"""Makes tables and a plot again, from records that a question left.

python -m bench.report records.jsonl [MORE.jsonl ...] [--out DIR]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.report.record import read_records, split_cut_short
from bench.report.report_files import figures_of, write_report
from patches.command_parser import CommandParser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = CommandParser(prog="policypatch bench report", description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, metavar="FILE", help="records.jsonl of a run")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the report (default: that of FILE)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report; the last line of stdout is one JSON object.

    Returns:
        0, or 1 where the records are unreadable.
    """
    args = build_parser().parse_args(argv)
    try:
        records = read_records(args.records)
        print(write_report(records, args.out or args.records[0].parent))
    except (BenchError, OSError) as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 1
    cells, cut_short = split_cut_short(records)
    line = {"question": cells[0].question, "ok": True, "records": str(args.records[0]), **figures_of(cells)}
    print(json.dumps(line | ({"cut_short": cut_short} if cut_short else {})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
