"""Writes docs/cli.md from the commands' parsers, so that every flag is documented and none is invented.

It renders the parser's own data, not its ``--help`` text, whose layout differs between Python versions.
"""

import argparse
import sys
from pathlib import Path

from server.cli import COMMANDS, build_parser

HEADER = """\
# Commands

Written by `make docs` from the commands themselves; a test compares. `policypatch COMMAND --help` says the
same.
Exit codes: 0 done, 1 the answer is no or the work failed, 2 a mistake in the call.
"""


def reference() -> str:
    """Return the whole page."""
    table = "\n".join(
        f"| [`{name}`](#policypatch-{name}) | {summary} |" for name, (_, summary) in COMMANDS.items()
    )
    sections = [command_section(["policypatch", name], command_parser(name)) for name in COMMANDS]
    return "\n".join([HEADER, "| command | what it does |\n| --- | --- |", table, "", *sections])


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of one subcommand with its arguments filled in."""
    return children(build_parser(name))[name]


def children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser's subparsers by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def command_section(words: list[str], parser: argparse.ArgumentParser) -> str:
    """Return the section of one command, then those of the commands below it."""
    parts = [f"{'#' * len(words)} {' '.join(words)}", ""]
    parts += [(parser.description or "").strip(), ""]
    rows = [
        argument_row(action)
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]
    if rows:
        parts += ["| argument | meaning |", "| --- | --- |", *rows, ""]
    if parser.epilog:
        parts += ["```text", parser.epilog.strip(), "```", ""]
    parts += [command_section([*words, name], child) for name, child in children(parser).items()]
    return "\n".join(parts)


def argument_row(action: argparse.Action) -> str:
    """Return a table row: how the argument is written, its help, the default where the help names none."""
    value = value_name(action)
    if not action.option_strings:
        written = f"`{value}`"
    elif action.nargs == 0:
        written = ", ".join(f"`{option}`" for option in action.option_strings)
    else:
        written = ", ".join(f"`{option} {value}`" for option in action.option_strings)
    meaning = (action.help or "") % {**vars(action), "prog": ""}
    if action.required and action.option_strings:
        meaning += " (required)"
    elif action.default not in (None, False, argparse.SUPPRESS, []) and "default" not in meaning:
        meaning += f" (default: {action.default})"
    return f"| {written} | {meaning.replace('|', '/')} |"


def value_name(action: argparse.Action) -> str:
    """Return the placeholder of the argument's value; choices spell themselves out."""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper().replace("_", "-") if action.option_strings else action.dest


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
