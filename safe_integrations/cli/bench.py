"""`safe-integrations bench`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from safe_integrations.cli import options as o
from safe_integrations.cli.knobs import knobs
from safe_integrations.cli.render import out, progress
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import InvalidArgumentError

if TYPE_CHECKING:
    from safe_integrations.bench.benchmark import Contest, Report, Tell
    from safe_integrations.messages import Message
    from safe_integrations.models.spec import ModelSpec


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

    Answers are greedy, prompts unread; all ways take turns. `generate` gets a copy of every model,
    so it takes twice their memory. By default the embedded pair is measured both ways round, which
    takes about a quarter of an hour on two cores.
    """
    from safe_integrations.bench.benchmark import WAYS, Settings, benchmark
    from safe_integrations.bench.machine import machine
    from safe_integrations.bench.plot import check_matplotlib, plot
    from safe_integrations.bench.prompts import PROMPTS

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
            contests, memory = _contests(
                specs, config, swapped, PROMPTS[settings.prompts[-1]], tell
            )
        described = machine() | {
            "dtype": dtype or "auto",
            "config": config.model_dump(mode="json"),
        }
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
    specs: Sequence[ModelSpec],
    config: EnsembleConfig,
    swapped: bool,
    question: Sequence[Message],
    tell: Tell,
) -> tuple[list[Contest], dict[str, int | None]]:
    """The ensemble as named, and the other way round where it is a pair; what it holds in memory.

    The engine gets the models as users get them, and answers once before `generate` gets copies
    of its own: so the memory is that of the ensemble.
    """
    from safe_integrations.bench.benchmark import Contest
    from safe_integrations.bench.machine import peak_memory, resident_memory
    from safe_integrations.bench.rival import TransformersGenerate
    from safe_integrations.models.load import load_member
    from safe_integrations.models.transformers.load import load_model
    from safe_integrations.models.transformers.member import TransformersMember  # noqa: F401
    from safe_integrations.safe_engine import SafeEngine

    if len(specs) < 2:
        raise InvalidArgumentError("--verifier", None, "name at least one model to measure with")
    memory = {"libraries": resident_memory()}  # torch and transformers, imported above
    members = [load_member(spec, tell) for spec in specs]
    engine = SafeEngine(members[0], members[1:], config)
    tell("answering once, to see how much memory it takes")
    engine.complete(question, GenerationConfig(max_tokens=_FIRST_ANSWER))
    memory |= {"resident": resident_memory(), "peak": peak_memory()}
    memory["caches"] = sum(getattr(member, "cache_bytes", 0) for member in members)
    rivals = [load_model(spec, tell) for spec in specs]
    memory["weights"] = sum(rival.model.get_memory_footprint() for rival in rivals)
    alone = [TransformersGenerate(rival.model, rival.tokenizer) for rival in rivals]
    contests = [Contest(engine, alone[0])]
    if len(members) == 2 and swapped:
        contests.append(Contest(SafeEngine(members[1], members[:1], config), alone[1]))
    return contests, memory


def _show(report: Report, memory: dict[str, int | None]) -> None:
    from safe_integrations.cli.bench_tables import tables

    console = out()
    for table in tables(report):
        console.print(table, soft_wrap=False)
        console.print()
    if memory:
        sizes = ", ".join(f"{name} {_mb(size)}" for name, size in memory.items())
        prompt = report.settings.prompts[-1]
        console.print(f"Memory of the first ensemble, after the {prompt} prompt: {sizes}.")
    console.print(
        f"Medians of {report.settings.repetitions} repetitions, ± half the distance from the "
        "lowest to the highest."
    )


def _mb(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**20:,.0f} MiB"
