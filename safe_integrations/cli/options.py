"""Options that several commands share, and the engine and messages they stand for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import parse_qsl

import typer

from safe_integrations.cli.config_options import read_json
from safe_integrations.cli.render import progress
from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema, Regex
from safe_integrations.errors import (
    IncompleteAnswerError,
    InvalidArgumentError,
    SchemaViolationError,
)
from safe_integrations.messages import Message

if TYPE_CHECKING:
    from safe_integrations.models.spec import ModelSpec
    from safe_integrations.report.result import Result
    from safe_integrations.safe_engine import SafeEngine


WITHOUT = ("response_format", "tools", "tool_choice", "parallel_tool_calls")
"""Fields of GenerationConfig that have options of their own, or no use on a command line."""

_MANY = "Many questions"

JOBS: Final = 16
"""Answers at the same time unless something else is said: on a CPU 1.25 times as fast as 8."""

Prompt = Annotated[str, typer.Argument(help='What to ask; "-" reads it from stdin.')]
MaybePrompt = Annotated[
    str | None, typer.Argument(help='What to ask; "-" reads it from stdin.', show_default=False)
]
Questions = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help='Questions to answer instead, one per line: text, or JSON objects with a "prompt" or '
        '"messages"; "-" reads them from stdin.',
        rich_help_panel=_MANY,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Where to write their answers, as JSON lines, instead of to stdout. What is answered "
        "there already is passed over.",
        rich_help_panel=_MANY,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Answers that are written at the same time; {JOBS} unless named.",
        rich_help_panel=_MANY,
    ),
]
System = Annotated[str | None, typer.Option(help="A system message.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write nothing on stderr but errors.")]
Drafter = Annotated[
    str | None,
    typer.Option(
        help="The model that writes ahead: a hub id, folder, GGUF file, repository:file.gguf, or "
        "the URL of a server, http://host:8000/v1?model=NAME&tokenizer=HUB_ID. Without any model "
        "named: the embedded default pair.",
        rich_help_panel="Models",
    ),
]
Verifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--verifier",
        help="A model that checks the draft; repeatable. A drafter without one writes alone.",
        rich_help_panel="Models",
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Type of the weights; auto takes the checkpoint's own. Another one has transformers "
        "compute GGUF files, too.",
        rich_help_panel="Models",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where to compute: cpu, cuda, cuda:1, mps, ... Other than cpu, it has transformers "
        "compute GGUF files, too.",
        rich_help_panel="Models",
    ),
]
SchemaFile = Annotated[
    Path | None,
    typer.Option(
        "--json-schema",
        help="A file with the JSON schema that the answer must follow.",
        rich_help_panel="Generation",
    ),
]
Strict = Annotated[
    bool | None,
    typer.Option(
        "--strict/--no-strict",
        help="Whether to refuse a schema that is not enforced as a whole, or to check the rest on "
        "the finished answer without a warning.",
        rich_help_panel="Generation",
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        "--regex",
        help="The regular expression that the answer must match.",
        rich_help_panel="Generation",
    ),
]


def messages_of(prompt: str, system: str | None) -> list[Message]:
    """The conversation that a command line asks for."""
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise InvalidArgumentError("prompt", "-", f"stdin is not UTF-8: {error}") from None
    if not prompt:
        raise InvalidArgumentError("prompt", prompt, "write something to answer")
    asked = Message("user", prompt)
    return [asked] if system is None else [Message("system", system), asked]


def with_format(
    options: GenerationConfig, schema: Path | None, pattern: str | None, strict: bool | None
) -> GenerationConfig:
    """Adds what the answer must look like."""
    if schema is not None and pattern is not None:
        raise InvalidArgumentError("--regex", pattern, "give --json-schema or --regex, not both")
    if schema is not None:
        wanted = JsonSchema(schema=read_schema("--json-schema", schema), strict=strict)
        return options.model_copy(update={"response_format": wanted})
    if pattern is not None:
        return options.model_copy(update={"response_format": Regex(pattern=pattern)})
    return options


def read_schema(argument: str, file: Path) -> dict[str, Any]:
    """The JSON schema in a file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(argument, str(file), str(error)) from None
    return read_json(argument, text)


def check(result: Result, options: GenerationConfig) -> None:
    """Checks that a finished answer is what was asked for.

    Raises:
        IncompleteAnswerError: max_tokens has closed it, and that was not allowed, or a stop string
            has cut it.
        SchemaViolationError: It breaks a part of its schema that its grammar did not enforce.
    """
    from safe_integrations.report.verdicts import why_closed
    from safe_integrations.structure.schemas import violation

    wanted, statistics = options.response_format, result.statistics
    closed = statistics.closed_at is not None
    if closed and options.on_length == "error":
        raise IncompleteAnswerError(f"the answer was {why_closed(statistics.cut)}")
    if isinstance(wanted, JsonSchema) and (closed or result.finish_reason == "stop"):
        try:
            value = json.loads(result.text)
        except ValueError:
            raise IncompleteAnswerError("a stop string cut the answer: leave out --stop") from None
        problem = violation(wanted.schema_, value)
        if problem is not None:
            raise SchemaViolationError(problem)


def specs_of(
    drafter: str | None, verifiers: Sequence[str] | None, dtype: str | None, device: str | None
) -> list[ModelSpec]:
    """What to load for the options of a command, drafter first."""
    from safe_integrations.models.load import with_defaults

    names = with_defaults(drafter, verifiers or None)
    return [_spec(str(name), dtype, device) for name in names]


def _spec(named: str, dtype: str | None, device: str | None) -> ModelSpec:
    """Reads the name of a model.

    `repository:file.gguf` is one of the files of a repository, and what stands behind the question
    mark of a URL says which model of a server is meant, and where its tokenizer is.
    """
    from safe_integrations.models.spec import ModelSpec, is_url

    if is_url(named):  # it decides itself where it computes, and how
        url, _, query = named.partition("?")
        asked: dict[str, Any] = {"source": url}
        for name, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
            if name == "api_key":  # everybody on the machine can read it
                remedy = "set SAFE_INTEGRATIONS_API_KEY in the environment instead"
                raise InvalidArgumentError(name, "...", remedy)
            if name in asked:
                raise InvalidArgumentError(name, value, "say it once")
            asked[name] = value
        return ModelSpec(**asked)
    given: dict[str, Any] = {"source": named, "dtype": dtype, "device": device}
    repository, colon, file = named.rpartition(":")
    if colon and len(repository) > 1 and file.endswith(".gguf"):  # and not a Windows drive
        given |= {"source": repository, "gguf_file": file}
    return ModelSpec(**{name: value for name, value in given.items() if value is not None})


def open_engine(specs: Sequence[ModelSpec], config: EnsembleConfig, quiet: bool) -> SafeEngine:
    """Loads the models, drafter first, and shows that it does."""
    with progress(quiet) as tell:
        return load(specs, config, tell)


def load(
    specs: Sequence[ModelSpec], config: EnsembleConfig, tell: Callable[[str], None]
) -> SafeEngine:
    """Loads the models, drafter first."""
    from safe_integrations import safe_engine

    return safe_engine.load_engine(specs[0], specs[1:], config=config, on_progress=tell)
