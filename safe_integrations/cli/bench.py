"""`safe-integrations bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from safe_integrations.cli import options as o
from safe_integrations.cli.knobs import knobs
from safe_integrations.cli.render import out, progress
from safe_integrations.config import EnsembleConfig
from safe_integrations.errors import InvalidArgumentError

if TYPE_CHECKING:
    from safe_integrations.backends.loading import LoadedModel, ModelSpec
    from safe_integrations.bench.benchmark import Cell, Contest, Report, Settings, Spread, Tell
    from safe_integrations.bench.measure import Run


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
    tokens: Tokens = [50, 200, 1000],  # noqa: B006 - Typer copies it
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
    measured both ways round, which takes an hour or more on two cores.
    """
    from safe_integrations.bench.benchmark import WAYS, Settings, benchmark
    from safe_integrations.bench.machine import machine, peak_memory
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
    before = peak_memory()
    with progress(quiet) as tell:
        chosen = o.models_of(drafter, verifier, dtype, device)
        models = [] if overhead else _load(chosen, tell)
        contests = list(_contests(models, o.named(chosen), config, swapped))
        described = machine() | {"config": config.model_dump(mode="json")}
        loaded = peak_memory()
        report = benchmark(contests, settings, tell)
    memory = {
        "peak_bytes_before_loading": before,
        "peak_bytes_after_loading": loaded,
        "peak_bytes": peak_memory(),
        "weights_bytes": {model.name: model.model.get_memory_footprint() for model in models},
        "longest_caches_bytes": _cache_bytes(models, contests, settings),
    }
    _show(report, memory)
    if json_file is not None:
        document = {"version": 1, "machine": described, "memory": memory, **report.to_dict()}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if plot_file is not None:
        plot_file.parent.mkdir(parents=True, exist_ok=True)
        plot(report, plot_file)


def _load(models: o.Models, tell: Tell) -> list[LoadedModel]:
    from safe_integrations.backends import loading

    specs = o.named(models)
    if len(specs) < 2:
        raise InvalidArgumentError("--verifier", None, "name at least one model to measure with")
    return [loading.load_model(spec, tell) for spec in specs]


def _contests(
    models: Sequence[LoadedModel],
    specs: Sequence[ModelSpec],
    config: EnsembleConfig,
    swapped: bool,
) -> Iterator[Contest]:
    """The ensemble as named, and the other way round where it is a pair.

    The engine gets the models as users get them; `generate` has copies of its own.
    """
    from safe_integrations.bench.benchmark import Contest
    from safe_integrations.bench.rival import TransformersGenerate
    from safe_integrations.engine import SafeEngine
    from safe_integrations.loading import load_member

    members = [load_member(spec) for spec in specs[: len(models)]]
    rivals = [TransformersGenerate(model.model, model.tokenizer) for model in models]
    if members:
        yield Contest(SafeEngine(members[0], members[1:], config), rivals[0])
    if len(members) == 2 and swapped:
        yield Contest(SafeEngine(members[1], members[:1], config), rivals[1])


def _cache_bytes(
    models: Sequence[LoadedModel], contests: Sequence[Contest], settings: Settings
) -> dict[str, int]:
    """What the longest prompt and answer need in each model's cache, at most."""
    from safe_integrations.bench.prompts import PROMPTS

    found = {}
    members = contests[0].engine.members if contests else ()
    for loaded, member in zip(models, members, strict=True):
        config = loaded.model.config.get_text_config()
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * kv_heads
        per_token = 2 * config.num_hidden_layers * width * loaded.model.dtype.itemsize
        prompt = max(len(member.render(PROMPTS[name])) for name in settings.prompts)
        found[loaded.name] = per_token * (prompt + max(settings.lengths))
    return found


# The report


def _show(report: Report, memory: dict[str, Any]) -> None:
    console = out()
    tables = [_engine_costs(report)]
    if report.cells:
        tables = [_speeds(report), _parts(report), _first_tokens(report), *tables]
    tables = [table for table in tables if table.row_count]
    for table in tables:
        console.print(table, soft_wrap=False)
        console.print()
    if report.cells and memory["peak_bytes"] is not None:
        sizes = {
            name: sum(memory[name].values()) for name in ("weights_bytes", "longest_caches_bytes")
        }
        console.print(
            f"peak memory {_mb(memory['peak_bytes'])}, {_mb(memory['peak_bytes_after_loading'])} "
            f"when all was loaded, {_mb(memory['peak_bytes_before_loading'])} before; "
            f"weights {_mb(sizes['weights_bytes'])}, longest caches "
            f"{_mb(sizes['longest_caches_bytes'])}"
        )
    console.print(f"Medians of {report.settings.repetitions} repetitions, (lowest-highest).")


def _speeds(report: Report) -> Table:
    from safe_integrations.bench.measure import TITLES

    table = _table("Tokens per second, and ratios", "pair", "prompt", "tokens")
    ways = report.settings.ways
    for name in (*(TITLES[way] for way in ways), "SAFE / drafter", "SAFE / every token"):
        table.add_column(name, justify="right")
    for cell in report.cells:
        written = cell.over("safe", lambda run: run.tokens)
        ended = written and written.median < cell.length
        table.add_row(
            cell.pair,
            cell.prompt,
            f"{cell.length}" + (f" ({written.median:.0f} written)" if written and ended else ""),
            *(_spread(cell.over(way, lambda run: run.speed), ".1f") for way in ways),
            _spread(cell.ratio("safe", "generate"), ".2f"),
            _spread(cell.ratio("safe", "every-token"), ".2f"),
        )
    return table


def _parts(report: Report) -> Table:
    """Where the time of SAFE goes: ms per token, and the share of the whole."""
    table = _table("Where the time of SAFE goes, in ms per token", "pair", "prompt", "tokens")
    for name in ("draft", "verify", "rest", "accepted", "ensembled", "forwarded per token"):
        table.add_column(name, justify="right")
    for cell in report.cells:
        table.add_row(
            cell.pair,
            cell.prompt,
            str(cell.length),
            *(_part(cell, name) for name in ("draft", "verify", "rest")),
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
