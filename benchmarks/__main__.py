"""`python -m benchmarks`: what `make bench` runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from safe_integrations.cli import options as o
from safe_integrations.cli.app import readable_errors
from safe_integrations.cli.config_options import config_options
from safe_integrations.cli.render import out, progress
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import InvalidArgumentError

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.benchmark import Contest, Tell
    from benchmarks.many import Many, Write
    from benchmarks.measure import Way
    from safe_integrations.messages import Message
    from safe_integrations.models.spec import ModelSpec


_FIRST_ANSWER: Final = 64  # tokens


class PromptName(StrEnum):
    """A prompt of `benchmarks.prompts`."""

    CHAT = "chat"
    RAG = "rag"


Tokens = Annotated[list[int], typer.Option(help="Tokens to write; repeatable.", min=1)]
Repetitions = Annotated[int, typer.Option(help="How often everything is measured.", min=1)]
Prompts = Annotated[list[PromptName], typer.Option("--prompt", help="What to answer; repeatable.")]
Swapped = Annotated[bool, typer.Option(help="Measure one verifier as the drafter, too.")]
Alone = Annotated[bool, typer.Option("--alone", help="Measure the drafter in this engine, too.")]
OverheadOnly = Annotated[
    bool,
    typer.Option(
        "--overhead",
        help="Measure the time outside the models instead: of answers that are greedy, sampled, "
        "with tools bound, and held to a JSON schema.",
    ),
]
ManyOnly = Annotated[
    bool,
    typer.Option(
        "--many",
        help="Measure many answers at once instead: of the ensemble, of its drafter, and of "
        "transformers' batched `generate` and continuous batching of the drafter.",
    ),
]
BackendsOnly = Annotated[
    bool,
    typer.Option(
        "--backends",
        help="Measure GGUF files on llama.cpp beside the same on transformers instead: answers, "
        "what their passes allow, starts and memory. The embedded pair takes 9 GB in all.",
    ),
]
ServedOnly = Annotated[
    bool,
    typer.Option(
        "--served",
        help="Measure the pair computed by servers instead: beside plain completions of its "
        "drafter, with a network's latency, and by lookahead. Starts two llama-servers, of one "
        "thread each, unless others are named.",
    ),
]
Url = Annotated[
    str | None, typer.Option(help="The server that computes this model, http://host:port/v1.")
]
AtOnce = Annotated[list[int], typer.Option(help="Answers at once, with --many; repeatable.", min=1)]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write everything measured to this file.", dir_okay=False),
]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@readable_errors()
@config_options({"config": EnsembleConfig}, without=("mode",))
def bench(
    *,
    config: EnsembleConfig,
    tokens: Tokens = [50, 200],  # noqa: B006 - Typer copies it
    repetitions: Repetitions = 3,
    prompt: Prompts = [PromptName.CHAT, PromptName.RAG],  # noqa: B006
    swapped: Swapped = True,
    alone: Alone = False,
    overhead: OverheadOnly = False,
    many: ManyOnly = False,
    backends: BackendsOnly = False,
    served: ServedOnly = False,
    drafter_url: Url = None,
    verifier_url: Url = None,
    at_once: AtOnce = [1, 2, 4, 8, 16, 32],  # noqa: B006
    drafter: o.Drafter = None,
    verifier: o.Verifiers = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    json_file: JsonFile = None,
    quiet: o.Quiet = False,
) -> None:
    """Measure SAFE against its drafter alone and against ensembling at every token.

    Answers are greedy, prompts unread; all ways take turns. `generate` gets a copy of every model,
    so it takes twice their memory. By default the embedded pair is measured both ways round, which
    takes about a quarter of an hour on two cores.
    """
    from benchmarks import tables as draw
    from benchmarks.backends import measure_backends
    from benchmarks.benchmark import WAYS, Settings, benchmark
    from benchmarks.machine import machine
    from benchmarks.overhead import measure_overhead
    from benchmarks.prompts import PROMPTS
    from benchmarks.served import measure_served, servers
    from benchmarks.tables_backends import tables as draw_backends
    from benchmarks.tables_many import tables as draw_many
    from benchmarks.tables_served import tables as draw_served

    specs = o.specs_of(drafter, verifier, dtype, device)
    if len(specs) < 2:
        raise InvalidArgumentError("--verifier", None, "name at least one model to measure with")
    urls = _urls(drafter_url, verifier_url, specs)
    if not backends and not served:  # what they are compared with computes the same weights
        specs = [spec.model_copy(update={"backend": "transformers"}) for spec in specs]
    lengths = sorted(set(tokens))

    def save(document: dict[str, Any]) -> None:
        if json_file is not None:
            told = {"dtype": dtype or "auto", "config": config.model_dump(mode="json")}
            _write(json_file, {"version": 1, "machine": machine() | told, **document})

    document: dict[str, Any]
    with progress(quiet) as tell:
        if backends:
            both = measure_backends(
                specs, config, lengths, repetitions, tell, lambda so_far: save(so_far.to_dict())
            )
            document, tables = both.to_dict(), draw_backends(both)
        elif served:
            with servers(specs, urls, tell) as running:
                far = measure_served(
                    specs, running, config, repetitions, tell, lambda so_far: save(so_far.to_dict())
                )
            document, tables = far.to_dict(), draw_served(far)
        elif overhead:
            measured = measure_overhead(o.load(specs, config, tell), repetitions, tell)
            document, tables = measured.to_dict(), [draw.overhead(measured)]
        elif many:
            crowd = _many(specs, config, sorted(set(at_once)), tell)
            document, tables = crowd.to_dict(), draw_many(crowd)
        else:
            settings = Settings(
                lengths=tuple(lengths),
                repetitions=repetitions,
                prompts=tuple(dict.fromkeys(str(name) for name in prompt)),
                ways=(*WAYS, "drafter-only") if alone else WAYS,
            )
            question = PROMPTS[settings.prompts[-1]]
            contests, memory = _contests(specs, config, swapped, question, tell)
            report = benchmark(contests, settings, tell)
            document = {"memory": memory, **report.to_dict()}
            tables = draw.tables(report, memory)
        save(document)
    _show(tables, None if many else repetitions)


def _urls(drafter: str | None, verifier: str | None, specs: Sequence[ModelSpec]) -> list[str]:
    """Where the models are served, if that is said."""
    urls = [url for url in (drafter, verifier) if url is not None]
    if urls and len(urls) != len(specs):
        raise InvalidArgumentError(
            "--drafter-url",
            drafter,
            "name the server of every model, one verifier at most, or none",
        )
    return urls


def _write(file: Path, document: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


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
    from benchmarks.benchmark import Contest
    from benchmarks.machine import peak_memory, resident_memory
    from benchmarks.reference import transformers_generate
    from safe_integrations.models.transformers.load import load_model
    from safe_integrations.models.transformers.member import TransformersMember  # noqa: F401
    from safe_integrations.safe_engine import SafeEngine

    memory: dict[str, int | None] = {"libraries": resident_memory()}  # torch is imported above
    engine = o.load(specs, config, tell)
    tell("answering once, to see how much memory it takes")
    engine.complete(question, GenerationConfig(max_tokens=_FIRST_ANSWER))
    memory |= {"resident": resident_memory(), "peak": peak_memory()}
    memory["caches"] = sum(getattr(member, "cache_bytes", 0) for member in engine.members)
    copies = [load_model(spec, tell) for spec in specs]
    memory["weights"] = sum(copy.model.get_memory_footprint() for copy in copies)
    alone = [transformers_generate(copy.model, copy.tokenizer) for copy in copies]
    contests = [Contest(engine, alone[0])]
    if len(specs) == 2 and swapped:
        other_way = SafeEngine(engine.verifiers[0], [engine.drafter], config)
        contests.append(Contest(other_way, alone[1]))
    return contests, memory


def _many(
    specs: Sequence[ModelSpec], config: EnsembleConfig, levels: Sequence[int], tell: Tell
) -> Many:
    """Many answers at once: nobody keeps caches, and transformers has models of its own."""
    from benchmarks.many import as_questions, measure_many
    from benchmarks.reference import Batches, Continuous
    from safe_integrations.models.transformers.load import load_model
    from safe_integrations.models.transformers.packing import pack
    from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

    engine = o.load([spec.model_copy(update={"reuse_bytes": 0}) for spec in specs], config, tell)
    plain, packed = (load_model(specs[0], tell) for _ in range(2))
    pack(packed.model)
    tokenizer = TransformersTokenizer(plain.tokenizer, plain.name)
    ends = sorted(tokenizer.end_ids(plain.model.generation_config, plain.model.config))
    render = engine.drafter.render
    others: dict[Way, Write] = {
        "generate": as_questions(Batches(plain.model, ends), render),
        "packed": as_questions(Batches(packed.model, ends, "packed"), render),
        "continuous": as_questions(Continuous(packed.model, ends), render),
    }
    return measure_many(engine, others, levels, tell)


def _show(tables: Sequence[Table], repetitions: int | None) -> None:
    console = out()
    for table in tables:
        console.print(table, soft_wrap=False)
        console.print()
    if repetitions is not None:
        console.print(
            f"Medians of {repetitions} repetitions, ± half the distance from the lowest to the "
            "highest."
        )


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
