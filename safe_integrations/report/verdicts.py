"""What every drawing of an answer says, and how: notebook, terminal, callback handlers.

A drawing asks here for words, colours and numbers, so that the same answer is told the same way
everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from safe_integrations.engine.events import Piece, Statistics, Verdict


@dataclass(frozen=True, slots=True)
class Look:
    """How a verdict is told.

    Attributes:
        words: What it means; the table of docs/events.md.
        label: What a legend calls it; empty where it has no colour.
        style: On a terminal, in the words of rich.
        css: In a notebook.
        tag: In HTML, so that the answer stays readable where a viewer strips the style sheet.
    """

    words: str
    label: str = ""
    style: str = ""
    css: str = ""
    tag: str = "span"


LOOKS: Final = {
    Verdict.FORCED: Look("written without asking any model: nothing else was allowed"),
    Verdict.CLOSED: Look(
        "written to end the answer within max_tokens",
        "closed by max_tokens",
        "dim italic",
        "box-shadow:inset 0 -1px rgba(218,54,51,.7)",
    ),
    Verdict.UNVERIFIED: Look("written by the drafter: no verifier was asked"),
    Verdict.UNANIMOUS: Look("kept: it is every verifier's favourite"),
    Verdict.MAJORITY: Look("kept: the mean probability is above the threshold"),
    Verdict.ACCEPTED: Look("kept: the model that was drawn would write the same"),
    Verdict.UNSAFE: Look(
        "kept unchecked: some verifier has no token boundary where it starts",
        "kept unchecked",
        "dim",
        "box-shadow:inset 0 -1px rgba(128,128,128,.55)",
    ),
    Verdict.CONFIRMED: Look(
        "ensembled: the draft was confirmed",
        "confirmed",
        "underline cyan",
        "background:rgba(56,139,253,.16);box-shadow:inset 0 -2px #388bfd",
        "u",
    ),
    Verdict.CHANGED: Look(
        "ensembled: the draft was changed",
        "changed",
        "bold black on yellow",
        "background:rgba(240,136,62,.32);box-shadow:inset 0 -2px #e36b17",
        "mark",
    ),
}
"""Every verdict, the loudest last."""

_SPECULATIVE: Final = "kept: drawn by the drafter, accepted by speculative sampling"

_RANK: Final = {verdict: rank for rank, verdict in enumerate(LOOKS)}


def loudest(verdicts: Iterable[Verdict]) -> Verdict:
    """The one to show where several pieces share a character."""
    return max(verdicts, key=_RANK.__getitem__)


def words(piece: Piece) -> str:
    """What the verdict on a piece means."""
    if piece.verdict is Verdict.ACCEPTED and piece.drawn is None:  # by the rule for tokens
        return _SPECULATIVE
    return LOOKS[piece.verdict].words


def drawn(piece: Piece) -> str:
    """The model that was drawn to write a piece, in words; empty where none was."""
    return "" if piece.drawn is None else f"drawn: {short(piece.drawn)}"


def legend(statistics: Statistics) -> list[tuple[str, Verdict | None]]:
    """Where the models were ensembled, in words; parts that name a verdict are in its colours."""
    s = statistics
    if len(s.models) < 2:
        return [("One model wrote this alone.", None)]
    counts = {
        Verdict.CONFIRMED: s.ensembled - s.changed,
        Verdict.CHANGED: s.changed,
        Verdict.UNSAFE: s.unsafe,
        Verdict.CLOSED: s.closed,
    }
    keys = [(f" {LOOKS[verdict].label}: {n} ", verdict) for verdict, n in counts.items() if n]
    return [(f"Ensembled at {s.ensembled} of {s.judged} pieces: ", None), *keys]


def facts(statistics: Statistics, finish_reason: str) -> str:
    """The numbers of an answer that are not about one model."""
    s = statistics
    waited = f" ({s.waited_seconds:.2f} s of it waiting for memory)" if s.waited_seconds else ""
    return (
        f"{s.tokens} tokens, {s.ensembled_ratio:.1%} ensembled, {s.acceptance:.1%} accepted, "
        f"{s.cycles} cycles, {s.seconds:.2f} s{waited}, finish: {finish_reason}"
        + "".join(f", without {short(name)} from byte {at} on" for name, at in s.lost.items())
    )


def lost(model: str, reason: str) -> str:
    """That an answer goes on without a model, in words."""
    return f"goes on without {short(model)}: {visible(reason)}"


def present(statistics: Statistics, at: int) -> list[str]:
    """The models that judged what begins at a place, in bytes; drafter first, without owners."""
    gone = statistics.lost
    return [short(m.name) for m in statistics.models if gone.get(m.name, inf) > at]


MODEL_COLUMNS: Final = ("", "model", "prompt", "passes", "forwarded", "seconds")


def model_rows(statistics: Statistics) -> list[tuple[str, ...]]:
    """What each model did, under `MODEL_COLUMNS`; then what the rest took, and the whole."""
    rows: list[tuple[str, ...]] = [
        (
            "drafter" if nth == 0 else "verifier",
            m.name,
            f"{m.prompt_tokens}" + (f" ({m.reused_tokens} reused)" if m.reused_tokens else ""),
            str(m.forward_passes),
            str(m.forwarded_tokens),
            f"{m.seconds:.2f}",
        )
        for nth, m in enumerate(statistics.models)
    ]
    rest = {"outside the models": statistics.overhead_seconds, "total": statistics.seconds}
    if statistics.waited_seconds:
        rest = {"waiting for memory": statistics.waited_seconds, **rest}
    return rows + [("", what, "", "", "", f"{seconds:.2f}") for what, seconds in rest.items()]


def short(model: str) -> str:
    """A model's name without the owner or the folder."""
    return model.rstrip("/").rsplit("/", 1)[-1]


# What a terminal would obey instead of showing: an answer must not move the cursor.
_VISIBLE: Final = {
    **{c: chr(0x2400 + c) for c in range(32)},
    **{ord("\n"): "⏎", ord("\t"): "⇥", 127: "␡"},
    **dict.fromkeys(range(0x80, 0xA0), "�"),
}


def visible(text: str, keep: str = "\n\t") -> str:
    """Text with its control characters made visible, but for those to keep."""
    return text.translate({c: sign for c, sign in _VISIBLE.items() if chr(c) not in keep})


def why_closed(cut: Sequence[str]) -> str:
    """Why an answer is not what was meant, in words.

    Args:
        cut: JSON pointers of the values that max_tokens has cut (`Statistics.cut`).
    """
    values = f" (it cut {', '.join(pointer or 'the whole' for pointer in cut)})" if cut else ""
    remedy = "raise max_tokens, or shorten the prompt where a context window is full"
    return f"cut off because max_tokens ran out{values}: {remedy}"
