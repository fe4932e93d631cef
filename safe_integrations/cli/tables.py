"""How tables look on the command line."""

from __future__ import annotations

from typing import Literal

from rich.table import Table


def table(title: str | None, *columns: str, numbers: bool = True) -> Table:
    """A table without lines: what a row is about, and behind it what was found.

    Without any columns it has no heading; `numbers`: whether all but the first hold numbers.
    """
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        min_width=len(title or ""),
        header_style="dim",
        show_header=bool(columns),
        box=None,
        padding=(0, 2, 0, 0),
    )
    for nth, column in enumerate(columns):
        right = numbers and nth > 0
        justify: Literal["left", "right"] = "right" if right else "left"
        made.add_column(column, justify=justify, no_wrap=right, overflow="fold")
    return made
