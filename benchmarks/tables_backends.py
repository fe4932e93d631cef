"""Both backends as tables, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rich.table import Table

from benchmarks.backends import ALONE, LLAMA, LOOP, RATIOS, TITLES, Backends, Length, Needed
from benchmarks.measure import ratio, writing_ratio
from benchmarks.starts import ANSWER, Starts
from benchmarks.tables import shown
from safe_integrations.cli.tables import table

_ROWS: Final = (1, 2, 3, 4, 5, 8, 16)  # more do not fit


def tables(measured: Backends) -> list[Table]:
    """Speeds, passes, what these allow, and starts: whatever was measured."""
    made = [_speeds(measured), _passes(measured)]
    made += [_needed(measured, way) for way in (ALONE, LLAMA, "float32")]
    return made if measured.starts is None else [*made, _starts(measured.starts)]


def _speeds(measured: Backends) -> Table:
    lengths = measured.lengths
    made = table(measured.pair, "", *(f"{length.length} tokens" for length in lengths))
    made.add_row("tokens per second")
    for way, title in TITLES.items():
        spreads = (length.over(way, lambda run: run.speed) for length in lengths)
        made.add_row(f"  {title}", *(shown(spread, ".1f") for spread in spreads))
    for heading, by in (("ratios", ratio), ("behind the first text", writing_ratio)):
        made.add_row(heading)
        for one, other in RATIOS:
            label = f"  {_short(one)} / {_short(other)}"
            made.add_row(label, *(shown(length.ratio(one, other, by), ".2f") for length in lengths))
    return made


def _short(way: str) -> str:
    names = {LOOP: "loop", ALONE: "drafter in this engine"}
    return names.get(way) or TITLES[way].removeprefix("SAFE, ")


def _passes(measured: Backends) -> Table:
    title = "What a pass takes, as a multiple of one row"
    made = table(title, "rows", *map(str, _ROWS), "ms of one")
    for model, cost in measured.costs.items():
        units = (f"{cost.units[rows]:.2f}" for rows in _ROWS)
        made.add_row(model, *units, f"{1000 * cost.medians[1]:.1f}")
    return made


def _needed(measured: Backends, way: str) -> Table:
    lengths, costs, drafter = measured.lengths, measured.costs, measured.drafter
    headings = (f"{length.length} tokens" for length in lengths)
    made = table(f"{TITLES[way]}: what its passes allow", "behind the first text", *headings)

    def row(label: str, show: Callable[[Length], str]) -> None:
        made.add_row(label, *map(show, lengths))

    row("bound, multiple of the loop", lambda n: shown(n.bound(way, costs, drafter), ".2f"))
    row("  reached of it", lambda n: shown(n.reached(way, costs, drafter), ".0%"))
    row("outside the models, ms per token", lambda n: shown(n.outside(way), ".2f"))
    needed = [length.needed(way, costs) for length in lengths]
    for model in dict.fromkeys(model for each in needed for model in each):
        made.add_row(model)
        parts: tuple[tuple[str, Callable[[Needed], str]], ...] = (
            ("passes per token", lambda n: f"{n.passes:.2f}"),
            ("rows in a pass", lambda n: f"{n.rows:.1f}"),
            ("times what such passes take by themselves", lambda n: f"{n.times:.2f}"),
        )
        for label, show in parts:
            found = (each.get(model) for each in needed)
            made.add_row(f"  {label}", *("-" if n is None else show(n) for n in found))
    return made


def _starts(starts: Starts) -> Table:
    made = table(f"A new process, after {ANSWER} tokens", "", *starts.kinds)
    for label, name, unit, form in (
        ("seconds to the first text", "seconds", 1, ".2f"),
        ("MiB resident", "resident", 1 << 20, ",.0f"),
        ("  of these caches", "caches", 1 << 20, ",.1f"),
        ("  beyond files and caches", "rest", 1 << 20, ",.0f"),
    ):
        spreads = (starts.over(kind, name, unit) for kind in starts.kinds)
        made.add_row(label, *(shown(spread, form) for spread in spreads))
    loaded = (
        ", ".join(dict.fromkeys(name for start in found for name in start.loaded)) or "neither"
        for found in starts.kinds.values()
    )
    made.add_row("of torch and transformers loaded", *loaded)
    for model, size in starts.files.items():
        made.add_row(f"MiB of {model}'s file", *[f"{size / 2**20:,.0f}"] * len(starts.kinds))
    return made
