"""The argument parser of every command: help that fits the terminal, and mistakes in one line."""

import argparse
import textwrap
from collections.abc import Iterable
from typing import Any, NoReturn

from patches.terminal import one_line
from patches.text import lines_of

_MAX_USAGE_LINES = 2


class CommandHelp(argparse.RawDescriptionHelpFormatter):
    """Wraps prose to the terminal, and leaves what is indented, examples above all, as it stands."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for the names of subcommands, which stand deeper than arguments."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            longest = max(map(len, action.choices), default=0)
            self._action_max_length = max(self._action_max_length, longest + 2 * self._indent_increment)

    def _format_usage(self, usage: Any, actions: Iterable[argparse.Action], groups: Any, prefix: Any) -> str:
        """Name all options where two lines hold them, else those that are required: the help has the rest."""
        actions = list(actions)
        lines = self._usage_lines(actions, groups, "", prefix)
        if len(lines) > _MAX_USAGE_LINES:
            required = [group for group in groups if group.required]
            alternatives = {one for group in required for one in group._group_actions}
            needed = [one for one in actions if one.required or not one.option_strings or one in alternatives]
            lines = self._usage_lines(needed, required, " [options]", prefix)
        return "\n".join(lines) + "\n\n"

    def _usage_lines(
        self, actions: list[argparse.Action], groups: Any, options: str, prefix: str | None
    ) -> list[str]:
        width, prog = self._width, self._prog
        self._width, self._prog = 10_000, f"{prog}{options}"
        try:
            text = super()._format_usage(None, actions, groups, prefix).strip()
        finally:
            self._width, self._prog = width, prog
        indent = " " * (text.find(prog) + len(prog) + 1)
        return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(self._paragraph(part, width, indent) for part in text.strip("\n").split("\n\n"))

    @staticmethod
    def _paragraph(text: str, width: int, indent: str) -> str:
        lines = lines_of(text)
        if any(line.startswith(" ") for line in lines):
            return textwrap.indent(text, indent)
        return textwrap.fill(
            " ".join(lines),
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )


class CommandParser(argparse.ArgumentParser):
    """A parser whose nested parsers are of its own kind."""

    def __init__(self, **options: Any) -> None:
        # `serve` passes on what it does not know: no flag of vLLM may read as a short form of ours.
        super().__init__(**{"formatter_class": CommandHelp, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """End with one line; the usage of some commands is longer than a screen."""
        self.exit(2, f"{one_line(f'{self.prog}: {message}')}; see `{self.prog} --help`\n")
