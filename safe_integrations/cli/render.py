"""What the command line writes: the answer to stdout, everything about it to stderr.

So a pipe gets the answer alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from safe_integrations.engine.events import (
    Event,
    Finished,
    ModelLost,
    Reasoned,
    TextDelta,
    Verified,
)
from safe_integrations.report.terminal import Painter, err, lost_line, styled
from safe_integrations.report.verdicts import visible


def out() -> Console:
    """The console for answers."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Writes one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def stream(events: Iterable[Event], quiet: bool) -> Iterator[Event]:
    """Writes the text of events to stdout as they pass by; to stderr what is lost, unless quiet."""
    console = out()
    painter = Painter() if styled(console) else None
    last = ""
    for event in events:
        if painter is not None and isinstance(event, Verified):
            painter.add(event.pieces)
        if isinstance(event, Reasoned) and isinstance(event.event, TextDelta):
            err().print(visible(event.event.text), style="dim", end="", soft_wrap=True)
        if isinstance(event, Reasoned) and isinstance(event.event, Finished):
            err().print("\n")
        happened = event.event if isinstance(event, Reasoned) else event
        if isinstance(happened, ModelLost) and not quiet:
            err().print()
            err().print(lost_line(happened.model, happened.reason), soft_wrap=True)
        if isinstance(event, TextDelta):
            last = event.text
            if painter is not None:
                console.print(painter.paint(event.text), end="")
            else:
                sys.stdout.write(visible(event.text) if console.is_terminal else event.text)
            sys.stdout.flush()
        if isinstance(event, Finished) and not last.endswith("\n"):
            sys.stdout.write("\n")
        yield event


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows what is being waited for, on stderr."""
    console = err()
    if quiet:
        yield lambda message: None
    elif _moves(console):
        with console.status("loading") as status:
            yield lambda message: status.update(Text(message))
    else:
        yield lambda message: console.print(message, style="dim", soft_wrap=True)


@contextmanager
def bar(total: int, done: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of what is done, on stderr where that is a terminal.

    Args:
        total: How much there is to do.
        done: How much of it is done already.
        shown: Whether to show anything at all.

    Returns:
        A function that moves the bar by one, and is told how many have failed so far. Any thread
        may call it.
    """
    console = err()
    if not shown or not _moves(console):
        yield lambda failed: None
        return
    columns = (
        TextColumn("{task.completed}/{task.total} answers"),
        BarColumn(None),
        TextColumn("{task.fields[failed]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=total, completed=done, failed="")
        yield lambda failed: progress.update(
            task, advance=1, failed=f"{failed} failed" if failed else ""
        )


def _moves(console: Console) -> bool:
    """Whether something can be drawn over what was there."""
    return console.is_terminal and os.environ.get("TERM") != "dumb"
