"""Answers and their statistics on a terminal.

The answer goes to stdout; everything about it goes to stderr, so a pipe gets the answer alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from safe_integrations.engine.events import (
    Event,
    Finished,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.report.characters import SpanReader, spans
from safe_integrations.report.result import Result

STYLES: Final = {
    Verdict.CONFIRMED: "underline cyan",
    Verdict.CHANGED: "bold black on yellow",
}

# What a terminal would obey instead of showing: an answer must not move the cursor.
_VISIBLE: Final = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {127: 0x2421}


def out() -> Console:
    """The console for answers."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def err() -> Console:
    """The console for everything about an answer."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def styled(console: Console) -> bool:
    """Whether colours can be shown and are wanted."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def print_json(document: Any) -> None:
    """Writes one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


class Painter:
    """Gives streamed text the style of the pieces that it comes from.

    Text is shown as it arrives, whatever the pieces say; they only decide the styles.
    """

    def __init__(self) -> None:
        self._reader = SpanReader()
        self._known: deque[tuple[int, str]] = deque()  # lengths in characters, and their styles

    def add(self, event: Verified) -> None:
        """Takes in what was judged; the text of it comes later."""
        for piece in event.pieces:
            span = self._reader.push(piece)
            if span is not None and span.text:
                self._known.append((len(span.text), STYLES.get(span.verdict, "")))

    def paint(self, delta: str) -> Text:
        """A delta with its styles."""
        text = Text()
        at = 0
        while at < len(delta):
            length, style = self._known.popleft() if self._known else (len(delta), "")
            text.append(delta[at : at + length].translate(_VISIBLE), style)
            if length > len(delta) - at:
                self._known.appendleft((length - len(delta) + at, style))
            at += length
        return text


def stream(events: Iterable[Event]) -> Iterator[Event]:
    """Writes the text of events to stdout as they pass by."""
    console = out()
    painter = Painter() if styled(console) else None
    last = ""
    for event in events:
        if painter is not None and isinstance(event, Verified):
            painter.add(event)
        if isinstance(event, TextDelta):
            last = event.text
            if painter is not None:
                console.print(painter.paint(event.text), end="")
            else:
                shown = event.text.translate(_VISIBLE) if console.is_terminal else event.text
                sys.stdout.write(shown)
            sys.stdout.flush()
        if isinstance(event, Finished) and not last.endswith("\n"):
            sys.stdout.write("\n")
        yield event


def painted(result: Result) -> Text:
    """A finished answer with its styles."""
    text = Text()
    for span in spans(result.pieces, result.text):
        text.append(span.text.translate(_VISIBLE), STYLES.get(span.verdict, ""))
    return text


def legend(statistics: Statistics, console: Console) -> Text:
    """One line that says in words where the models were ensembled."""
    if len(statistics.models) < 2:
        return Text("One model wrote this alone.")
    if not statistics.ensembled:
        return Text("The models agreed everywhere: nothing was ensembled.")
    colours = styled(console)
    line = Text(f"The models were ensembled at {statistics.ensembled} of {statistics.judged}: ")
    for verdict, count, what in (
        (Verdict.CONFIRMED, statistics.ensembled - statistics.changed, "kept the draft"),
        (Verdict.CHANGED, statistics.changed, "changed it"),
    ):
        line.append(f" {count} {what} ", STYLES[verdict] if colours else "")
        line.append(" ")
    return line


def key() -> Text:
    """What the styles mean."""
    return Text.assemble(
        (" ensembled, kept the draft ", STYLES[Verdict.CONFIRMED]),
        " ",
        (" ensembled, changed it ", STYLES[Verdict.CHANGED]),
    )


def short(model: str) -> str:
    """A model's name without the owner or the folder."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def facts(result: Result) -> str:
    """The numbers of an answer that are not about one model."""
    s = result.statistics
    return (
        f"{s.tokens} tokens, {s.ensembled_ratio:.1%} ensembled, {s.acceptance:.1%} accepted, "
        f"{s.cycles} cycles, finish: {result.finish_reason}"
    )


def model_table(statistics: Statistics) -> Table:
    """Seconds and forward passes of every model, and what the rest took."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("model", overflow="fold")
    for column in ("prompt", "passes", "forwarded", "seconds"):
        table.add_column(column, justify="right")
    for nth, m in enumerate(statistics.models):
        table.add_row(
            "drafter" if nth == 0 else "verifier",
            m.name,
            f"{m.prompt_tokens}" + (f" ({m.reused_tokens} cached)" if m.reused_tokens else ""),
            str(m.forward_passes),
            str(m.forwarded_tokens),
            f"{m.seconds:.2f}",
        )
    table.add_row("", "outside the models", "", "", "", f"{statistics.overhead_seconds:.2f}")
    table.add_row("", "total", "", "", "", f"{statistics.seconds:.2f}", style="bold")
    return table


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows what is being waited for, on stderr."""
    console = err()
    if quiet:
        yield lambda message: None
    elif console.is_terminal and os.environ.get("TERM") != "dumb":
        with console.status("loading") as status:
            yield lambda message: status.update(Text(message))
    else:
        yield lambda message: console.print(message, style="dim", soft_wrap=True)
