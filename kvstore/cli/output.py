"""How commands print: one JSON document, or text for people.

A document is `{"meta": {…}, "rows": [flat objects]}`, with units in the names of the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from kvstore.cli.settings import Settings

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_document(command: str, settings: Settings, rows: Sequence[dict[str, Any]]) -> None:
    """Prints the document of one command."""
    from kvstore.bench.document import metadata, print_json

    print_json(metadata(f"kvstore {command}", target=settings.target_text), rows)


def print_table(table: Table) -> None:
    """Prints to the width of the terminal; into a pipe, as wide as the content."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(table)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
    """A plain table; columns whose cells are all numbers stand to the right."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = rows and all(row[index][:1].isdigit() or row[index] == "-" for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
