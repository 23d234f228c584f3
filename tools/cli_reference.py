"""Writes docs/cli.md from the commands' parsers, so that every flag is documented and none is invented.

It renders the parser's own data, not its ``--help`` text, whose layout differs between Python versions.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from server.cli import COMMANDS, build_parser
from server.commands.bench import QUESTIONS, module_of

HEADER = """\
# Commands

Written by `make docs` from the commands themselves; a test compares. `policypatch COMMAND --help` says the
same. Exit codes: 0 done, 1 the answer is no or the work failed, 2 a mistake in the call.
"""


def reference() -> str:
    """Return the whole page."""
    table = [f"| [`{name}`](#policypatch-{name}) | {summary} |" for name, (_, summary) in COMMANDS.items()]
    sections = [section(words, parser) for words, parser in parsers()]
    return (
        "\n".join([HEADER, "| command | what it does |", "| --- | --- |", *table, "", *sections]).rstrip()
        + "\n"
    )


def parsers() -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """Yield the words and the parser of each subcommand, after it those of its actions or questions."""
    for name in COMMANDS:
        parser = command_parser(name)
        yield ["policypatch", name], parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, nested in action.choices.items():
                    yield ["policypatch", name, word], nested
        if name == "bench":
            for question in QUESTIONS:
                module = importlib.import_module(module_of(question))
                yield ["policypatch", name, question], module.build_parser()


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of one subcommand with its arguments filled in."""
    for action in build_parser(name)._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser: argparse.ArgumentParser = action.choices[name]
            return parser
    raise LookupError(name)


def section(words: list[str], parser: argparse.ArgumentParser) -> str:
    """Return the section of one command: description, arguments, epilog."""
    parts = [f"{'#' * len(words)} {' '.join(words)}", "", (parser.description or "").strip(), ""]
    if rows := [*argument_rows(parser)]:
        parts += ["| argument | meaning |", "| --- | --- |", *rows, ""]
    if parser.epilog:
        parts += ["```text", parser.epilog.strip(), "```", ""]
    return "\n".join(parts)


def argument_rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the table rows of all arguments, each group under its name as in ``--help``."""
    hidden = argparse._HelpAction | argparse._SubParsersAction
    unnamed = {parser._positionals.title, parser._optionals.title}
    for group in parser._action_groups:
        rows = [argument_row(action) for action in group._group_actions if not isinstance(action, hidden)]
        if rows and group.title not in unnamed:
            yield f"| **{group.title}** | |"
        yield from rows


def argument_row(action: argparse.Action) -> str:
    """Return a table row: how the argument is written, its help, the default where the help names none."""
    value = value_name(action)
    if not action.option_strings:
        written = f"`{value}`"
    else:
        suffix = "" if action.nargs == 0 else f" {value}"
        written = ", ".join(f"`{option}{suffix}`" for option in action.option_strings)
    meaning = (action.help or "") % {**vars(action), "prog": ""}
    if action.required and action.option_strings:
        meaning += " (required)"
    elif action.option_strings and action.nargs != 0 and "default" not in meaning:
        meaning += default_note(action.default)
    return f"| {written} | {meaning.replace('|', '/').strip()} |"


def default_note(default: object) -> str:
    """Return the note on an argument's default, empty where there is none worth saying."""
    if default is None or default == argparse.SUPPRESS:
        return ""
    if isinstance(default, list | tuple):
        default = ",".join(map(str, default))
    return f" (default: {default})" if default != "" else ""


def value_name(action: argparse.Action) -> str:
    """Return the placeholder of the argument's value; choices spell themselves out."""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper().replace("_", "-") if action.option_strings else action.dest


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
