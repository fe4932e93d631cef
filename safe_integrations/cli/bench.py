"""`safe-integrations bench`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table

from safe_integrations.cli import options as o
from safe_integrations.cli.knobs import knobs
from safe_integrations.cli.render import out, progress
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import InvalidArgumentError

if TYPE_CHECKING:
    from safe_integrations.backends.loading import ModelSpec
    from safe_integrations.bench.benchmark import Cell, Contest, Report, Spread, Tell
    from safe_integrations.bench.measure import Run


_FIRST_ANSWER: Final = 64  # tokens


class PromptName(StrEnum):
    """A prompt of `bench.prompts`."""

    CHAT = "chat"
    RAG = "rag"


Tokens = Annotated[list[int], typer.Option(help="Tokens to write; repeatable.", min=1)]
Repetitions = Annotated[int, typer.Option(help="How often everything is measured.", min=1)]
Prompts = Annotated[list[PromptName], typer.Option("--prompt", help="What to answer; repeatable.")]
Swapped = Annotated[bool, typer.Option(help="Measure one verifier as the drafter, too.")]
Alone = Annotated[bool, typer.Option("--alone", help="Measure the drafter in this engine, too.")]
Overhead = Annotated[
    bool, typer.Option("--overhead", help="Measure the engine only, on toys without weights.")
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write everything measured to this file.", dir_okay=False),
]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw it into this file; needs matplotlib.", dir_okay=False),
]


@knobs({"config": EnsembleConfig}, without=("mode",))
def bench(
    *,
    config: EnsembleConfig,
    tokens: Tokens = [50, 200],  # noqa: B006 - Typer copies it
    repetitions: Repetitions = 3,
    prompt: Prompts = [PromptName.CHAT, PromptName.RAG],  # noqa: B006
    swapped: Swapped = True,
    alone: Alone = False,
    overhead: Overhead = False,
    drafter: o.Drafter = None,
    verifier: o.Verifiers = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    quiet: o.Quiet = False,
) -> None:
    """Measure SAFE against its drafter alone and against ensembling at every token.

    Answers are greedy, prompts unread; all ways take turns. By default the embedded pair is
    measured both ways round, which takes about half an hour on two cores.
    """
    from safe_integrations.bench.benchmark import WAYS, Settings, benchmark
    from safe_integrations.bench.machine import machine
    from safe_integrations.bench.plot import check_matplotlib, plot

    if plot_file is not None:
        if overhead:
            raise InvalidArgumentError("--plot", str(plot_file), "not with --overhead")
        check_matplotlib()  # before an hour of measuring
    settings = Settings(
        lengths=tuple(sorted(set(tokens))),
        repetitions=repetitions,
        prompts=tuple(dict.fromkeys(str(name) for name in prompt)),
        ways=(*WAYS, "drafter-only") if alone else WAYS,
    )
    contests: list[Contest] = []
    memory: dict[str, int | None] = {}
    with progress(quiet) as tell:
        if not overhead:
            specs = o.named(o.models_of(drafter, verifier, dtype, device))
            contests, memory = _contests(specs, config, swapped, tell)
        described = machine() | {"config": config.model_dump(mode="json")}
        report = benchmark(contests, settings, tell)
    _show(report, memory)
    if json_file is not None:
        document = {"version": 1, "machine": described, "memory": memory, **report.to_dict()}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if plot_file is not None:
        plot_file.parent.mkdir(parents=True, exist_ok=True)
        plot(report, plot_file)


def _contests(
    specs: Sequence[ModelSpec], config: EnsembleConfig, swapped: bool, tell: Tell
) -> tuple[list[Contest], dict[str, int | None]]:
    """The ensemble as named, and the other way round where it is a pair; what it holds in memory.

    The engine gets the models as users get them, and answers once before `generate` gets copies
    of its own: so the memory is that of the ensemble.
    """
    from safe_integrations.backends.loading import load_model
    from safe_integrations.backends.transformers import TransformersMember  # noqa: F401
    from safe_integrations.bench.benchmark import Contest
    from safe_integrations.bench.machine import peak_memory, resident_memory
    from safe_integrations.bench.prompts import PROMPTS
    from safe_integrations.bench.rival import TransformersGenerate
    from safe_integrations.engine import SafeEngine
    from safe_integrations.loading import load_member

    if len(specs) < 2:
        raise InvalidArgumentError("--verifier", None, "name at least one model to measure with")
    memory = {"libraries": resident_memory()}  # torch and transformers, imported above
    members = [load_member(spec, tell) for spec in specs]
    engine = SafeEngine(members[0], members[1:], config)
    tell("answering once, to see how much memory it takes")
    engine.complete(PROMPTS["rag"], GenerationConfig(max_tokens=_FIRST_ANSWER))
    memory |= {"resident": resident_memory(), "peak": peak_memory()}
    memory["caches"] = sum(getattr(member, "cache_bytes", 0) for member in members)
    rivals = [load_model(spec, tell) for spec in specs]
    memory["weights"] = sum(rival.model.get_memory_footprint() for rival in rivals)
    alone = [TransformersGenerate(rival.model, rival.tokenizer) for rival in rivals]
    contests = [Contest(engine, alone[0])]
    if len(members) == 2 and swapped:
        contests.append(Contest(SafeEngine(members[1], members[:1], config), alone[1]))
    return contests, memory


# The report


def _show(report: Report, memory: dict[str, int | None]) -> None:
    console = out()
    tables = [_engine_costs(report)]
    if report.cells:
        tables = [
            _speeds(report, "Tokens per second, and ratios"),
            _speeds(report, "The same behind the first text", behind_first_text=True),
            _parts(report),
            _first_tokens(report),
            *tables,
        ]
    tables = [table for table in tables if table.row_count]
    for table in tables:
        console.print(table, soft_wrap=False)
        console.print()
    if memory:
        sizes = ", ".join(f"{name} {_mb(size)}" for name, size in memory.items())
        console.print(f"Memory of the first ensemble, after the rag prompt: {sizes}.")
    console.print(f"Medians of {report.settings.repetitions} repetitions, (lowest-highest).")


def _speeds(report: Report, title: str, *, behind_first_text: bool = False) -> Table:
    from safe_integrations.bench.measure import TITLES, ratio, writing_ratio

    table = _table(title, "pair", "prompt", "tokens")
    ways = report.settings.ways
    for name in (*(TITLES[way] for way in ways), "SAFE / drafter", "SAFE / every token"):
        table.add_column(name, justify="right")
    by = writing_ratio if behind_first_text else ratio

    def speed(run: Run) -> float:
        return run.writing_speed if behind_first_text else run.speed

    for cell in report.cells:
        written = cell.over("safe", lambda run: run.tokens)
        ended = written and written.median < cell.length
        table.add_row(
            cell.pair,
            cell.prompt,
            f"{cell.length}" + (f" ({written.median:.0f} written)" if written and ended else ""),
            *(_spread(cell.over(way, speed), ".1f") for way in ways),
            _spread(cell.ratio("safe", "generate", by), ".2f"),
            _spread(cell.ratio("safe", "every-token", by), ".2f"),
        )
    return table


def _parts(report: Report) -> Table:
    """Where the time of SAFE goes: ms per token, and the share of the whole."""
    from safe_integrations.bench.measure import Parts

    table = _table("Where the time of SAFE goes, in ms per token", "pair", "prompt", "tokens")
    for name in (*Parts._fields, "accepted", "ensembled", "forwarded per token"):
        table.add_column(name, justify="right")
    for cell in report.cells:
        table.add_row(
            cell.pair,
            cell.prompt,
            str(cell.length),
            *(_part(cell, name) for name in Parts._fields),
            _share(cell, "acceptance"),
            _share(cell, "ensembled_ratio"),
            " + ".join(f"{count:.2f}" for count in cell.forwarded("safe")),
        )
    return table


def _part(cell: Cell, name: str) -> str:
    def seconds(run: Run) -> float:
        return float(getattr(run.parts, name))

    per_token = cell.over("safe", lambda run: 1000 * seconds(run) / run.tokens)
    share = cell.over("safe", lambda run: seconds(run) / run.seconds)
    return f"{_spread(per_token, '.1f')} {share.median:.1%}" if share else "-"


def _share(cell: Cell, name: str) -> str:
    found = cell.over("safe", lambda run: float(getattr(run.statistics, name)))
    return f"{found.median:.0%}" if found else "-"


def _first_tokens(report: Report) -> Table:
    table = _table("Seconds to the first text of the rag prompt", "pair")
    for name in ("new", "second question", "second / new"):
        table.add_column(name, justify="right")
    for pair in dict.fromkeys(first.pair for first in report.first_tokens):
        cold, again, share = report.first_token(pair)
        table.add_row(pair, _spread(cold, ".2f"), _spread(again, ".2f"), _spread(share, ".3f"))
    return table


def _engine_costs(report: Report) -> Table:
    table = _table("The engine itself, on toys without weights", "tokens")
    table.add_column("ms per token", justify="right")
    for length in report.settings.toy_lengths:
        table.add_row(str(length), _spread(report.cost(length), ".3f"))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=name != "pair")
    return table


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:{form}} ({spread.low:{form}}-{spread.high:{form}})"


def _mb(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**20:,.0f} MiB"
