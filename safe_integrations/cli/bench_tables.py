"""The report of a benchmark as tables, one for every ensemble, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from rich.table import Table

from safe_integrations.bench.benchmark import Cell, Report, Spread
from safe_integrations.bench.measure import TITLES, Parts, Run, Way, ratio, writing_ratio

_MODELS: Final = ("draft", "verify")  # parts that take milliseconds, not fractions of one


def tables(report: Report) -> list[Table]:
    """All that was measured: answers, first tokens, and the engine by itself."""
    pairs = list(dict.fromkeys(cell.pair for cell in report.cells))
    shown = [_answers(pair, [c for c in report.cells if c.pair == pair], report) for pair in pairs]
    if report.first_tokens:
        shown.append(_first_tokens(report))
    return [*shown, _engine_costs(report)]


def _answers(pair: str, cells: list[Cell], report: Report) -> Table:
    table = _table(pair, "", *(f"{cell.prompt}, {cell.length}" for cell in cells))

    def row(label: str, show: Callable[[Cell], str]) -> None:
        table.add_row(label, *map(show, cells))

    def run_row(label: str, value: Callable[[Run], float], form: str) -> None:
        row(label, lambda cell: _shown(cell.over("safe", value), form))

    def ratio_row(label: str, way: Way, by: Callable[[Run, Run], float]) -> None:
        row(f"  {label}", lambda cell: _shown(cell.ratio("safe", way, by), ".2f"))

    run_row("tokens written", lambda run: run.tokens, ".0f")
    table.add_row("tokens per second")
    for way in report.settings.ways:
        row(f"  {TITLES[way]}", partial(_speed, way=way))
    for heading, by in (("ratios", ratio), ("behind the first text", writing_ratio)):
        table.add_row(heading)
        ratio_row("SAFE / drafter", "generate", by)
        ratio_row("SAFE / every token", "every-token", by)
    table.add_row("ms per token of SAFE")
    for name in Parts._fields:
        run_row(f"  {name}", partial(_ms, part=name), ".1f" if name in _MODELS else ".2f")
    run_row("  outside the models", partial(_ms, part="outside"), ".2f")
    run_row("outside, share of the whole", lambda run: run.parts.outside / run.seconds, ".1%")
    run_row("drafted tokens accepted", partial(_statistic, name="acceptance"), ".0%")
    run_row("places ensembled", partial(_statistic, name="ensembled_ratio"), ".0%")
    row(
        "forwarded per token",
        lambda cell: " + ".join(f"{count:.1f}" for count in cell.forwarded("safe")),
    )
    return table


def _speed(cell: Cell, way: Way) -> str:
    return _shown(cell.over(way, lambda run: run.speed), ".1f")


def _ms(run: Run, part: str) -> float:
    return 1000 * float(getattr(run.parts, part)) / run.tokens


def _statistic(run: Run, name: str) -> float:
    return float(getattr(run.statistics, name))


def _first_tokens(report: Report) -> Table:
    table = _table("Seconds to the first text of the rag prompt", "", "new", "again", "again / new")
    for pair in dict.fromkeys(first.pair for first in report.first_tokens):
        cold, again, share = report.first_token(pair)
        table.add_row(pair, _shown(cold, ".2f"), _shown(again, ".2f"), _shown(share, ".3f"))
    return table


def _engine_costs(report: Report) -> Table:
    table = _table("The engine itself, on toys without weights", "tokens", "ms per token")
    for length in report.settings.toy_lengths:
        table.add_row(str(length), _shown(report.cost(length), ".3f"))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", min_width=len(title), box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _shown(spread: Spread | None, form: str) -> str:
    """The median, and half the distance from the lowest to the highest."""
    if spread is None:
        return "-"
    half = (spread.high - spread.low) / 2
    return f"{spread.median:{form}}" + (f" ±{half:{form}}" if half else "")
