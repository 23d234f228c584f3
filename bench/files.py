"""What becomes of damaged and hostile patch files.

    python -m bench.files --count 10000

Each file is put where a server would find it and handed to the catalog that a server has. What has to come
out: every file is refused with a reason that was foreseen, and what served before goes on serving.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.hostile.file_reader import Outcome, show_in_processes
from bench.run.question import question_parser
from bench.servers.environment import describe_environment

MIB = 1 << 20

DESCRIPTION = """\
Hand damaged and hostile patch files to the catalog, and count what becomes of them. Exit code 1 where one was
loaded, crashed the reader, hung it, or changed what serves."""

EPILOG = """\
examples:
  policypatch bench files
  policypatch bench files --count 500 --first-seed 20000 --json"""


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Count what became of the files, all in all and family by family."""
    families = {}
    for family in sorted({outcome.family for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if outcome.family == family]
        families[family] = {**_figures(mine), "reasons": dict(Counter(o.reason for o in mine).most_common(8))}
    bad = [asdict(outcome) for outcome in outcomes if outcome.result != "refused"]
    return {**_figures(outcomes), "families": families, "not_refused": bad[:20]}


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    seconds = sorted(outcome.seconds for outcome in outcomes)
    return {
        "num_files": len(outcomes),
        **{
            f"num_{result}": sum(outcome.result == result for outcome in outcomes)
            for result in ("refused", "loaded", "crashed", "hung", "disturbed")
        },
        "p50_ms": round(seconds[len(seconds) // 2] * 1000, 2),
        "max_ms": round(seconds[-1] * 1000, 2),
        "max_extra_mib": round(max(outcome.extra_bytes for outcome in outcomes) / MIB, 1),
    }


def markdown_table(summary: dict[str, Any]) -> str:
    """Render the summary for people."""
    lines = [
        "| what was done to the file | files | refused | loaded | crashed or hung | CPU time | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family, figures in [*summary["families"].items(), ("all", summary)]:
        broken = figures["num_crashed"] + figures["num_hung"] + figures["num_disturbed"]
        cells = [family, figures["num_files"], figures["num_refused"], figures["num_loaded"], broken]
        cells += [f"{figures['max_ms']:.0f} ms", f"{figures['max_extra_mib']:.1f} MiB"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this question."""
    parser = question_parser("files", DESCRIPTION, EPILOG)
    parser.add_argument(
        "--count", type=int, default=10_000, metavar="N", help="how many files (default: 10000)"
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="S", help="seed of the first (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object only, without the table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the question; the last line of output is one JSON object."""
    args = build_parser().parse_args(arguments)
    outcomes = list(show_in_processes(range(args.first_seed, args.first_seed + args.count)))
    summary = summarise(outcomes)
    if not args.json:
        print(markdown_table(summary))
    is_ok = summary["num_refused"] == summary["num_files"]
    print(json.dumps({"question": "files", "ok": is_ok, **summary, "environment": describe_environment()}))
    return int(not is_ok)


if __name__ == "__main__":
    sys.exit(main())
