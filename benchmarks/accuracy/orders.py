"""Whether who drafts changes the text: the pair both ways round, and how close a difference was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks.accuracy.running import ARMS, Tell, append
from benchmarks.figures import agree
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Piece
from safe_integrations.engine.model import Member
from safe_integrations.messages import Message
from safe_integrations.report.result import Result

_SHOWN: Final = 4  # candidates


@dataclass(frozen=True, slots=True)
class Compared:
    """One prompt, answered both ways round.

    Attributes:
        prompt: What was asked.
        tokens: The budget, in tokens of whoever drafted.
        texts: What both wrote, the given order first.
        ended: Whether each came to its end by itself.
        same: Whether the texts are one, up to where the budget cut the shorter one.
        places: Where they first differ, what decided the piece there: of each order.
    """

    prompt: str
    tokens: int
    texts: tuple[str, str]
    ended: tuple[bool, bool]
    same: bool
    places: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, prompt: str, tokens: int, one: Result, other: Result) -> Compared:
        """Compares two answers to a prompt."""
        ended = one.finish_reason == "stop", other.finish_reason == "stop"
        same = agree(one.text, ended[0], other.text, ended[1])
        at = first_difference(one.text.encode(), other.text.encode())
        places = () if same else tuple(place(result.pieces, at) for result in (one, other))
        return cls(prompt, tokens, (one.text, other.text), ended, same, places)

    @property
    def margin(self) -> float | None:
        """How far the two best scores were apart where the texts part, at least; None: unknown."""
        margins = [p["margin"] for p in self.places if p.get("margin") is not None]
        return min(margins) if margins else None


def first_difference(one: bytes, other: bytes) -> int:
    """The first byte that differs, or the length of the shorter one."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def place(pieces: Sequence[Piece], at: int) -> dict[str, Any]:
    """What was decided at a byte of an answer, as JSON-safe data; empty behind its end."""
    found = [p for p in pieces if p.start <= at < p.end or p.start == at == p.end]
    if not found:
        return {}
    piece = found[0]
    best = piece.candidates[:_SHOWN]
    margin = best[0].probability - best[1].probability if len(best) > 1 else None
    shown = [
        {"symbol": _shown(c.symbol), "score": c.probability, "by_model": c.by_model} for c in best
    ]
    told = {"start": piece.start, "written": _shown(piece.written), "verdict": str(piece.verdict)}
    return {**told, "margin": margin, "candidates": shown}


def _shown(symbol: bytes) -> str:
    return symbol.decode(errors="backslashreplace")


def read(file: Path) -> list[Compared]:
    """The comparisons of earlier runs."""
    found = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        told = json.loads(line)
        lists = {name: tuple(told[name]) for name in ("texts", "ended", "places")}
        found.append(Compared(**{**told, **lists}))
    return found


def compare_orders(
    prompts: Sequence[str],
    tokens: int,
    members: Callable[[], Sequence[Member]],
    file: Path,
    seconds: float | None = None,
    tell: Tell = lambda _: None,
) -> list[Compared]:
    """Answers what is not yet in the file both ways round, and returns all that is there.

    Args:
        prompts: What to ask.
        tokens: Most tokens of an answer.
        members: Loads the models, drafter first. Not called where nothing is missing.
        file: JSON lines.
        seconds: Begin no answer later than this; None has no end.
        tell: Told what is going on.
    """
    there = {(each.prompt, each.tokens) for each in read(file)}
    missing = [prompt for prompt in prompts if (prompt, tokens) not in there]
    if missing and seconds != 0:
        loaded = members()
        engines = [ARMS[arm](loaded) for arm in ("text", "text-swapped")]
        start = perf_counter()
        for done, prompt in enumerate(missing):
            if seconds is not None and perf_counter() - start > seconds:
                break
            tell(f"{len(missing) - done} prompts to answer both ways round")
            options = GenerationConfig(max_tokens=tokens)
            results = [engine.complete([Message("user", prompt)], options) for engine in engines]
            append(file, Compared.of(prompt, tokens, *results))
    wanted = {(prompt, tokens) for prompt in prompts}
    return [each for each in read(file) if (each.prompt, each.tokens) in wanted]


def markdown(found: Sequence[Compared]) -> str:
    """What came of it."""
    parted = [each for each in found if not each.same]
    rows = [f"{len(found) - len(parted)} of {len(found)} texts are the same both ways round.", ""]
    for each in parted:
        margin = "unknown" if each.margin is None else f"{each.margin:.2g}"
        written = " / ".join(f"{p['written']!r}, {p['verdict']}" for p in each.places if p)
        rows.append(f"- {each.prompt!r}: {written}; margin {margin}")
    return "\n".join(rows) + "\n"
