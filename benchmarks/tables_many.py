"""Many answers at once as tables, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, median
from typing import Final

from rich.table import Table

from benchmarks.many import BESIDE, Load, Many
from benchmarks.measure import TITLES, Way
from safe_integrations.cli.tables import table

_OURS: Final[tuple[Way, ...]] = ("safe", "drafter-only")


def tables(many: Many) -> list[Table]:
    """Speeds, what became of the passes of our own ways, and one question beside others."""
    shown = [
        _speeds(many),
        *(_passes(many, way) for way in _OURS if many.loads[way, many.levels[0]].passes),
    ]
    return [*shown, _interactive(many)] if many.arrivals else shown


def _speeds(many: Many) -> Table:
    made = table(f"{many.pair}: answers at once", "", *map(str, many.levels))

    def rows(heading: str, show: Callable[[Load], str]) -> None:
        made.add_row(heading)
        for way in many.ways:
            made.add_row(f"  {TITLES[way]}", *(show(many.loads[way, n]) for n in many.levels))

    rows("tokens per second, all together", lambda load: f"{load.speed:.1f}")
    rows("multiple of one by one", lambda load: f"{many.ratio(load.way, load.at_once):.2f}")
    rows("seconds for an answer", lambda load: f"{mean(load.latencies):.1f}")
    rows("the worst of them", lambda load: f"{max(load.latencies):.1f}")
    rows("MiB for each on its way", lambda load: f"{load.memory / load.at_once / 2**20:.1f}")
    for way, why in many.failed.items():
        made.add_row(f"{TITLES[way]}: {why}")
    return made


def _passes(many: Many, way: Way) -> Table:
    made = table(f"{TITLES[way]}: its passes", "", *map(str, many.levels))
    costs = many.costs()
    sharings = [many.loads[way, n].sharing for n in many.levels]
    first = many.loads[way, many.levels[0]].speed
    bounds = [sharing.bound(costs) for sharing in sharings]
    made.add_row("bound, multiple of one by one", *(f"{b / first:.2f}" for b in bounds))
    reached = zip((many.loads[way, n].speed for n in many.levels), bounds, strict=True)
    made.add_row("  reached of it", *(f"{speed / bound:.0%}" for speed, bound in reached))
    made.add_row(
        "outside the models, ms per token",
        *(f"{1000 * sharing.outside / sharing.tokens:.2f}" for sharing in sharings),
    )
    made.add_row("  share of the whole", *(f"{s.outside / s.seconds:.1%}" for s in sharings))
    found = [sharing.to_dict() for sharing in sharings]
    for model in found[0]:
        made.add_row(model)
        for label, key, form in (
            ("sessions in a pass", "sessions_per_pass", ".1f"),
            ("rows in a pass", "rows_per_pass", ".1f"),
            ("ms of a pass", "ms_per_pass", ".0f"),
            ("passes per token", "passes_per_token", ".3f"),
            ("the same of each answer", "sessions_per_token", ".2f"),
            ("rows per token", "rows_per_token", ".2f"),
        ):
            made.add_row(f"  {label}", *(f"{each[model][key]:{form}}" for each in found))
        sizes = (each[model]["cache_bytes"] / 2**20 for each in found)
        made.add_row("  MiB of a cache", *(f"{size:.1f}" for size in sizes))
    return made


def _interactive(many: Many) -> Table:
    made = table(f"One question beside {BESIDE} others", "seconds", "alone", "beside", "times")
    for label, alone, beside in (
        ("whole", "alone", "beside"),
        ("first text", "first_alone", "first_beside"),
    ):
        pairs = [(getattr(a, alone), getattr(a, beside)) for a in many.arrivals]
        for name, choose in (("median", median), ("worst", max)):
            made.add_row(
                f"{label}, {name}",
                f"{choose(a for a, _ in pairs):.2f}",
                f"{choose(b for _, b in pairs):.2f}",
                f"{choose(b / a for a, b in pairs):.2f}",
            )
    return made
