"""Tables of figures on a terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from patches.terminal import one_line

if TYPE_CHECKING:
    from patches.evaluate.report.tables import Table


def print_tables(tables: "Sequence[Table]") -> None:
    """Draw tables, those that a check failed in red."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left", caption="\n".join(table.notes) or None)
        for column in table.columns:
            shown.add_column(column)
        for row in table.rows:
            shown.add_row(
                *(escape(one_line(cell)) for cell in row), style="red" if row[0] == "FAIL" else None
            )
        console.print(shown)
