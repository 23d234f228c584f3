"""``policypatch bench``: hands over to ``python -m bench.QUESTION``.

The benchmarks are no library code: they are run as programs, by name, and never imported.
"""

import argparse
import importlib.util
import runpy
import sys

from server.commands.errors import CommandError

#: question -> what it asks. ``bench/QUESTION.py`` answers it.
QUESTIONS = {
    "overhead": "what a patch costs: throughput, TTFT, ITL, against plain vLLM",
    "catalog": "whether a server with a thousand patches stays fast",
    "frontend": "what our front end adds to a request and a token, beside vLLM's",
    "fleet": "how long until every server of a fleet serves what was published",
    "start": "how long a server with 1,000 patches, and commands, take to start",
    "scrape": "what a scrape of the metrics costs a server",
    "fidelity": "how close answers under a patch are to those under its text",
    "files": "what becomes of 10,000 damaged and hostile patch files",
    "scale": "whether many different patches in one batch cost anything",
    "overflow": "what it costs when patches outnumber device slots",
    "soak": "whether a server stays right under load, swaps and faults",
    "swap": "what requests notice while their patch is replaced",
    "memory": "what a patch takes of the KV cache and of memory",
    "cross-check": "whether `vllm bench serve` finds the same figures",
    "inject": "what writing prefixes into a KV cache costs; no server",
    "steering": "what vectors cost that act on every request, or on none",
    "steer-layer": "what steering adds to a layer; no server",
    "compose": "how far joined compositions are from prepared ones; no server",
    "report": "tables and a plot again, from records of a question",
}

DESCRIPTION = """\
Measure one question over HTTP, against servers that the benchmark starts itself or that it is given.
Each run leaves records (JSON lines), a table and a plot; the last line of its output is one JSON object."""

EPILOG = "\n".join(
    [
        "questions:",
        *(f"  {name:<11}  {meaning}" for name, meaning in QUESTIONS.items()),
        "",
        "examples:",
        "  policypatch bench overhead --help",
        "  policypatch bench overhead --model ./smollm2 --policy-text policy.txt",
        "  policypatch bench report bench/out/overhead-*/records.jsonl --out report",
    ]
)


def module_of(question: str) -> str:
    """Return the module that answers a question: that name, or its ``__main__`` where it is a package."""
    module = f"bench.{question.replace('-', '_')}"
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return f"{module}.__main__" if is_package else module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the question; whatever follows it belongs to the question."""
    parser.add_argument("question", choices=QUESTIONS, metavar="QUESTION", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the question's own flags")


def run(args: argparse.Namespace) -> int:
    """Run the question in this process, so that signals and output are its own.

    Returns:
        The question's exit code.
    """
    for package in ("aiohttp", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise CommandError(f"{package} is not installed; install policypatch[bench]")
    saved = sys.argv
    sys.argv = [f"policypatch bench {args.question}", *args.arguments]
    try:
        runpy.run_module(module_of(args.question), run_name="__main__")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        sys.argv = saved
    return 0
