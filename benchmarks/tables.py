"""What a benchmark measured as tables, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from rich.table import Table

from benchmarks.benchmark import Cell, Report, Spread
from benchmarks.measure import TITLES, Parts, Run, Way, ratio, writing_ratio
from benchmarks.overhead import KINDS, Overhead
from safe_integrations.cli.tables import table

_MODELS: Final = ("draft", "verify")  # parts that take milliseconds, not fractions of one
_OUTSIDE: Final = tuple(part for part in Parts._fields if part not in _MODELS)


def tables(report: Report, memory: Mapping[str, int | None]) -> list[Table]:
    """All that was measured: an ensemble's answers each, first tokens, memory."""
    pairs = list(dict.fromkeys(cell.pair for cell in report.cells))
    made = [_answers(pair, [c for c in report.cells if c.pair == pair], report) for pair in pairs]
    if report.first_tokens:
        title = "Seconds to the first text of the rag prompt"
        firsts = table(title, "", "new", "again", "again / new")
        for pair in pairs:
            spreads = zip(report.first_token(pair), (".2f", ".2f", ".3f"), strict=True)
            firsts.add_row(pair, *(shown(spread, form) for spread, form in spreads))
        made.append(firsts)
    title = f"Memory in MiB of the first ensemble, after the {report.settings.prompts[-1]} prompt"
    sizes = table(title, *memory)
    sizes.add_row(*("?" if size is None else f"{size / 2**20:,.0f}" for size in memory.values()))
    return [*made, sizes]


def overhead(measured: Overhead) -> Table:
    """Milliseconds per token outside the models, and what they went into."""
    title = f"{measured.pair}: ms per token outside the models"
    made = table(title, "", "tokens", *_OUTSIDE, "together", "/ greedy")
    for kind in KINDS:
        made.add_row(
            kind,
            shown(measured.over(kind, lambda run: run.tokens), ".0f"),
            *(shown(measured.per_token(kind, part), ".1f") for part in _OUTSIDE),
            shown(measured.per_token(kind), ".1f"),
            shown(measured.against_greedy(kind), ".2f"),
        )
    return made


def _answers(pair: str, cells: list[Cell], report: Report) -> Table:
    made = table(pair, "", *(f"{cell.prompt}, {cell.length}" for cell in cells))

    def row(label: str, show: Callable[[Cell], str]) -> None:
        made.add_row(label, *map(show, cells))

    def run_row(label: str, value: Callable[[Run], float], form: str, way: Way = "safe") -> None:
        row(label, lambda cell: shown(cell.over(way, value), form))

    def ratio_row(label: str, way: Way, by: Callable[[Run, Run], float]) -> None:
        row(f"  {label}", lambda cell: shown(cell.ratio("safe", way, by), ".2f"))

    run_row("tokens written", lambda run: run.tokens, ".0f")
    made.add_row("tokens per second")
    for way in report.settings.ways:
        run_row(f"  {TITLES[way]}", lambda run: run.speed, ".1f", way)
    for heading, by in (("ratios", ratio), ("behind the first text", writing_ratio)):
        made.add_row(heading)
        ratio_row("SAFE / drafter", "generate", by)
        ratio_row("SAFE / the same by tokens", "by-token", by)
        ratio_row("SAFE / every token", "every-token", by)
    made.add_row("ms per token of SAFE")
    for part in Parts._fields:
        run_row(f"  {part}", partial(Run.per_token, part=part), ".1f" if part in _MODELS else ".2f")
    run_row("  outside the models", Run.per_token, ".2f")
    run_row("outside, share of the whole", lambda run: run.parts.outside / run.seconds, ".1%")
    run_row("drafted tokens accepted", partial(_statistic, name="acceptance"), ".0%")
    run_row("places ensembled", partial(_statistic, name="ensembled_ratio"), ".0%")
    row("forwarded per token", partial(_forwarded, way="safe"))
    row("  by tokens", partial(_forwarded, way="by-token"))
    return made


def _forwarded(cell: Cell, way: Way) -> str:
    return " + ".join(f"{count:.1f}" for count in cell.forwarded(way))


def _statistic(run: Run, name: str) -> float:
    return float(getattr(run.statistics, name))


def shown(spread: Spread | None, form: str) -> str:
    """The median, and half the distance from the lowest to the highest."""
    if spread is None:
        return "-"
    half = (spread.high - spread.low) / 2
    return f"{spread.median:{form}}" + (f" ±{half:{form}}" if half else "")
