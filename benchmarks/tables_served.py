"""Served members as tables, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rich.table import Table

from benchmarks.served import ALONE, LOOKAHEADS, MIXED, OFF, ON, PAIR, SERVED, Served, way
from benchmarks.tables import shown
from benchmarks.turns import Answers, Turns
from safe_integrations.cli.tables import table

_COSTS: Final[tuple[tuple[str, Callable[[Answers], float], str], ...]] = (
    ("tokens per cycle", lambda a: a.checked, ".2f"),
    ("requests per token", lambda a: a.per_token("requests"), ".2f"),
    ("round trips waited for, per token", lambda a: a.waited_trips, ".2f"),
    ("bytes received per token", lambda a: a.per_token("received_bytes"), ",.0f"),
    ("bytes sent per token", lambda a: a.sent, ",.0f"),
    ("ms per token outside of waiting", lambda a: a.outside, ".2f"),
    ("ms per token that this process computes", lambda a: a.computed, ".2f"),
)


def tables(measured: Served) -> list[Table]:
    """Speeds by answers at once, what drafting on gains, lookaheads, and where time goes."""
    return [_levels(measured), _overlap(measured), _lookaheads(measured), _profile(measured)]


def _levels(measured: Served) -> Table:
    levels = measured.levels.values()
    made = table(f"{measured.pair}, answers at once", "", *map(str, measured.levels))
    for name, title in ((PAIR, "the pair"), (ALONE, "plain completions of the drafter")):
        label = f"tokens per second: {title}"
        made.add_row(label, *(_speed(turns, name) for turns in levels))
    made.add_row("ratio", *(shown(turns.ratio(PAIR, ALONE), ".2f") for turns in levels))
    for label, value, form in _COSTS:
        made.add_row(label, *(shown(turns.over(PAIR, value), form) for turns in levels))
    return made


def _speed(turns: Turns, name: str) -> str:
    return shown(turns.over(name, lambda answers: answers.speed), ".1f")


def _overlap(measured: Served) -> Table:
    delays = measured.overlap
    title = "Drafting on while the verifier is waited for, by a network's delay"
    made = table(title, "", *(f"{delay} ms" for delay in delays))
    for who in (SERVED, MIXED):
        on, off = way(who, ON), way(who, OFF)
        made.add_row(f"{who}: tokens per second", *(_speed(t, on) for t in delays.values()))
        made.add_row("  without", *(_speed(t, off) for t in delays.values()))
        made.add_row("  gain", *(shown(t.ratio(on, off), ".2f") for t in delays.values()))
        for name, label in ((on, "  trips waited for, per token"), (off, "  without")):
            cells = (t.over(name, lambda answers: answers.waited_trips) for t in delays.values())
            made.add_row(label, *(shown(cell, ".2f") for cell in cells))
    return made


def _lookaheads(measured: Served) -> Table:
    turns = measured.lookaheads
    made = table("By lookahead", "", *map(str, LOOKAHEADS))
    names = [str(n) for n in LOOKAHEADS]
    made.add_row("tokens per second", *(_speed(turns, name) for name in names))
    made.add_row("/ auto", *(shown(turns.ratio(name, "auto"), ".2f") for name in names))
    for label, value, form in _COSTS[:3]:
        made.add_row(label, *(shown(turns.over(name, value), form) for name in names))
    return made


def _profile(measured: Served) -> Table:
    made = table("The thread that answers, outside of waiting", "", "calls per token", "ms")
    for name, calls, milliseconds in measured.profile:
        made.add_row(name, f"{calls:.1f}", f"{milliseconds:.3f}")
    return made
