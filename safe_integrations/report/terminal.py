"""Answers and their statistics, drawn for a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from rich.console import Console as Console  # for callers too, who need not know rich
from rich.table import Table
from rich.text import Text as Text

from safe_integrations.engine.events import Piece, Statistics, Verdict
from safe_integrations.report import verdicts
from safe_integrations.report.characters import CharacterReader
from safe_integrations.report.payloads import show
from safe_integrations.report.result import Result
from safe_integrations.report.verdicts import LOOKS, MODEL_COLUMNS, model_rows, short, visible

_RUNNERS_UP: Final = 2
"""Candidates shown besides the written one."""


def err() -> Console:
    """The console for everything about an answer."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def styled(console: Console) -> bool:
    """Whether colours can be shown and are wanted."""
    return console.is_terminal and console.color_system is not None and not console.no_color


class Painter:
    """Gives streamed text the style of the pieces that it comes from.

    Text is shown as it arrives, whatever the pieces say; they only decide the styles.
    """

    def __init__(self) -> None:
        self._reader = CharacterReader()
        self._styles: deque[str] = deque()  # of every character to come

    def add(self, pieces: Iterable[Piece]) -> None:
        """Takes in what was judged; the text of it comes later."""
        for whole in filter(None, map(self._reader.push, pieces)):
            self._styles.extend([LOOKS[whole.verdict].style] * len(whole.text))

    def paint(self, delta: str) -> Text:
        """A delta with its styles."""
        styles = [self._styles.popleft() if self._styles else "" for _ in delta]
        text = Text(visible(delta))
        for style, places in groupby(range(len(delta)), styles.__getitem__):
            start, *more = places
            text.stylize(style, start, start + 1 + len(more))
        return text


def painted(result: Result) -> Text:
    """A finished answer with its styles."""
    painter = Painter()
    painter.add(result.pieces)
    return painter.paint(result.text)


def legend(statistics: Statistics, console: Console) -> Text:
    """One line that says in words where the models were ensembled."""
    colours, parts = styled(console), verdicts.legend(statistics)
    return Text.assemble(*((words, LOOKS[v].style if v and colours else "") for words, v in parts))


def key() -> Text:
    """What the styles mean."""
    return Text.assemble(
        "Colours: ", *((f" {look.label} ", look.style) for look in LOOKS.values() if look.label)
    )


def model_table(statistics: Statistics) -> Table:
    """Seconds and forward passes of every model, and what the rest took."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for nth, name in enumerate(MODEL_COLUMNS):
        table.add_column(name, justify="right" if nth > 1 else "left", overflow="fold")
    for row in model_rows(statistics):
        table.add_row(*row)
    return table


# An answer while it is being made


def marked(mark: str, line: str | Text, style: str = "") -> Text:
    """A line with what it is about in front."""
    return Text.assemble((mark, "dim"), Text(line, style) if isinstance(line, str) else line)


def round_line(pieces: Iterable[Piece], dropped: int) -> Text:
    """What was written in a round, and how many drafted tokens were thrown away."""
    line = Text.assemble(*((_one_line(p.written), LOOKS[p.verdict].style) for p in pieces))
    if not line:
        line.append("waiting for more text", "dim")
    if dropped:
        line.append(f"  {dropped} drafted dropped", "dim")
    return line


def ensemble_line(piece: Piece) -> Text:
    """What became of the draft at one place: what was written, who gave it what, its runners-up.

    Where a model was drawn, which: then there was nothing to merge.
    """
    line = Text.assemble(("↳ ", "dim"))
    changed = piece.verdict is Verdict.CHANGED
    if changed:
        line.append(_quoted(piece.proposed)).append(" → ")
    line.append(_quoted(piece.written), LOOKS[piece.verdict].style)
    line.append("" if changed else " confirmed")
    if piece.drawn is not None:
        line.append(f"  {verdicts.drawn(piece)}")
    if not piece.candidates:
        return line
    won, *others = piece.candidates
    names = [f"{short(vote.model)} " for vote in piece.votes] or [""] * len(won.by_model)
    shares = (f"{name}{share:.0%}" for name, share in zip(names, won.by_model, strict=True))
    line.append(f"  {won.probability:.0%} ({', '.join(shares)})")
    if others:
        rest = (f"{_quoted(c.symbol)} {c.probability:.0%}" for c in others[:_RUNNERS_UP])
        line.append(f"  before {', '.join(rest)}", "dim")
    return line


def lost_line(model: str, reason: str) -> Text:
    """A verifier's server failed, and the answer goes on without it."""
    return Text.assemble(("✗ ", "dim"), (verdicts.lost(model, reason), "red"))


def _one_line(symbol: bytes) -> str:
    return visible(show(symbol), keep="")


def _quoted(symbol: bytes) -> str:
    return f"“{_one_line(symbol)}”"
