"""What is asked of the models: their owner's options and those of one call, in all their forms."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Annotated, Any, Final

from pydantic import Field

from safe_integrations.adapters.answer import Begun
from safe_integrations.config import (
    Choice,
    EnsembleConfig,
    GenerationConfig,
    Grammar,
    JsonSchema,
    Regex,
    StrictModel,
    Tool,
)
from safe_integrations.engine.events import Event
from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled, InvalidArgumentError, SafeTimeoutError
from safe_integrations.messages import Message
from safe_integrations.report.tracing import GenerationSpan
from safe_integrations.safe_engine import SafeEngine as SafeEngine
from safe_integrations.structure.classes import LOCAL_TIME as LOCAL_TIME
from safe_integrations.structure.classes import schema_of as schema_of
from safe_integrations.structure.closed import closed

_ENSEMBLE: Final = frozenset(EnsembleConfig.model_fields)
_GENERATION: Final = frozenset(GenerationConfig.model_fields)
CALL_OPTIONS: Final = _ENSEMBLE | _GENERATION | {"timeout", "strict"}
"""Everything that can be said about one answer."""

_ALIASES: Final = {"max_completion_tokens": "max_tokens"}
_IGNORED: Final = ("stream", "user")  # for servers: how to send the answer, and to whom
_WORDS: Final = {"auto": "auto", "none": "none", "any": "required", "required": "required"}


Seconds = Annotated[float, Field(gt=0, strict=True)]
"""More than none."""


class Request(StrictModel):
    """How one answer is made.

    Attributes:
        ensemble: How the models are merged.
        options: How the answer is made.
        timeout: Seconds it may take, once the models are loaded.
    """

    ensemble: EnsembleConfig
    options: GenerationConfig
    timeout: Seconds | None = None


@dataclass(frozen=True)
class Job:
    """One answer to make.

    Attributes:
        request: How.
        conversation: What is asked.
        load: Gives the engine, made with `request.ensemble`. May block for long.
        span: Records it.
    """

    request: Request
    conversation: Sequence[Message]
    load: Callable[[], SafeEngine]
    span: GenerationSpan

    def events(
        self, engine: SafeEngine, stopped: Callable[[], bool] = never
    ) -> Generator[Event | Begun, None, None]:
        """What the engine does to answer, behind what has been agreed on. Blocks.

        Args:
            engine: What `load` gave.
            stopped: Whether the caller has stopped it.

        Raises:
            SafeTimeoutError: The time is up.
            SafeError: Whatever the engine raises.
        """
        options, seconds = self.request.options, self.request.timeout
        end = inf if seconds is None else monotonic() + seconds

        def enough() -> bool:
            return monotonic() >= end or stopped()

        try:
            names = tuple(member.name for member in engine.members)
            config = engine.config
            yield Begun(names, config.mode, config.unit, engine.agreement.form)
            events = engine.generate(self.conversation, options, cancel=enough)
            yield from self.span.follow(events, left=stopped)
        except GenerationCancelled:
            if monotonic() < end:
                raise
            raise SafeTimeoutError(
                f"the answer was not complete after {seconds:g} seconds: raise timeout, or "
                "lower max_tokens"
            ) from None


def read_request(
    own: Mapping[str, Any],
    call: Mapping[str, Any],
    as_tool: Callable[[Any], Mapping[str, Any]],
    as_schema: Callable[[type], dict[str, Any]],
) -> Request:
    """How a call is made: the model's own options, and those of the call over them.

    None stands for what is not said. Where a call of a tool is forced, it is one call unless
    `parallel_tool_calls` is given: small models that may go on calling do. Stop strings never cut
    a forced call or a structured answer: these end by their grammar. Where the call forces a tool,
    the model's own `response_format` gives way.

    Args:
        own: The model's options.
        call: The call's.
        as_tool: The framework's function that gives one of its tools OpenAI's form.
        as_schema: Gives the JSON schema of a class.

    Raises:
        InvalidArgumentError: There is no such option, or its value cannot be used.
    """
    given: dict[str, Any] = {}
    for said in (own, call):
        for name, value in said.items():
            if name in _IGNORED:
                continue
            if name not in CALL_OPTIONS and name not in _ALIASES:
                known = ", ".join(sorted(CALL_OPTIONS))
                raise InvalidArgumentError(
                    name, value, f"there is no such option of a call; use one of {known}"
                )
            if value is not None:
                given[_ALIASES.get(name, name)] = value
    if "tools" in given:
        given["tools"] = read_tools(given["tools"], as_tool)
    if "tool_choice" in given:
        names = [tool.name for tool in given.get("tools", ())]
        given["tool_choice"] = read_tool_choice(given["tool_choice"], names)
    forced = given.get("tool_choice", "auto") not in ("auto", "none")
    given.setdefault("parallel_tool_calls", not forced)
    if call.get("tool_choice") is not None and forced and call.get("response_format") is None:
        given.pop("response_format", None)
    if "response_format" in given:
        given["response_format"] = read_format(given["response_format"], as_schema)
    if forced or given.get("response_format") is not None:
        given.pop("stop", None)
    if "strict" in given:
        _be_strict(given)
    return Request(
        ensemble=EnsembleConfig(**{k: v for k, v in given.items() if k in _ENSEMBLE}),
        options=GenerationConfig(**{k: v for k, v in given.items() if k in _GENERATION}),
        timeout=given.get("timeout"),
    )


def _be_strict(given: dict[str, Any]) -> None:
    """What is said of all schemas goes for those that say nothing themselves."""
    said, wanted = given["strict"], given.get("response_format")
    if not isinstance(said, bool):
        raise InvalidArgumentError("strict", said, "use True, False or None")
    given["tools"] = tuple(
        tool if isinstance(tool.strict, bool) else tool.model_copy(update={"strict": said})
        for tool in given.get("tools", ())
    )
    if isinstance(wanted, JsonSchema) and wanted.strict is None:
        given["response_format"] = wanted.model_copy(update={"strict": said})
    elif isinstance(wanted, dict) and wanted["type"] == "json_schema":
        given["response_format"] = {"strict": said, **wanted}


def read_tools(tools: Any, as_tool: Callable[[Any], Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Reads tools: ours, OpenAI's dicts (of both its interfaces), and the framework's own.

    Raises:
        InvalidArgumentError: It is no list, or something in it is not a function that a local
            model could call (`web_search` and the like run elsewhere).
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise InvalidArgumentError("tools", tools, "pass a list of tools")
    return tuple(tool if isinstance(tool, Tool) else _tool(tool, as_tool) for tool in tools)


def _tool(tool: Any, as_tool: Callable[[Any], Mapping[str, Any]]) -> Tool:
    found = openai_function(tool) or openai_function(as_tool(tool))
    if found is None:
        raise InvalidArgumentError("tools", tool, "only functions can be called by local models")
    fields = ("name", "description", "parameters", "strict")
    return Tool(**{key: found[key] for key in fields if found.get(key) not in (None, "", {})})


def openai_function(tool: Any) -> Mapping[str, Any] | None:
    """The function of a tool in either form of OpenAI's, or None where it has another."""
    if not isinstance(tool, Mapping):
        return None
    function = tool.get("function", tool if tool.get("type") == "function" else None)
    return function if isinstance(function, Mapping) and "name" in function else None


def read_tool_choice(choice: Any, names: Sequence[str]) -> str:
    """Reads every form of tool_choice: words, booleans, a tool's name, OpenAI's and Anthropic's.

    Args:
        choice: What the caller said.
        names: Names of the tools.

    Returns:
        `auto`, `none`, `required`, or a name.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    said = choice
    if isinstance(choice, bool):
        said = "required" if choice else "none"
    elif isinstance(choice, Mapping):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        said = choice.get("type") if name is None else name
        if name is not None and name in names:
            return str(name)
    if isinstance(said, str) and said in _WORDS:
        return _WORDS[said]
    if isinstance(said, str) and said in names:
        return said
    known = ", ".join(["auto", "none", "any", "required", *names])
    raise InvalidArgumentError("tool_choice", choice, f"use one of {known}")


def read_format(given: Any, as_schema: Callable[[type], dict[str, Any]]) -> Any:
    """Reads a response format: ours, as an object or as data, OpenAI's forms, or a class.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    match given:
        case None | {"type": "text"}:
            return None
        case Regex() | Grammar() | Choice():
            return given
        case {"type": "regex" | "grammar" | "choice"}:
            return dict(given)
        case {"type": "json_object"}:
            return JsonSchema(schema={"type": "object"})
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **said}}:
            strict: Any = said.get("strict")
            return JsonSchema(schema=closed(schema), strict=strict)
        case JsonSchema(schema_=schema, strict=strict):
            return JsonSchema(schema=closed(schema), strict=strict)
        case {"type": "json_schema", "schema": schema, **said}:
            strict = said.get("strict")
            return JsonSchema(schema=closed(schema), strict=strict)
        case type():
            return JsonSchema(schema=closed(as_schema(given)))
    raise InvalidArgumentError(
        "response_format",
        given,
        'pass a pydantic class, {"type": "json_schema", "json_schema": {"schema": {...}}}, '
        '{"type": "json_object"}, or a JsonSchema, Regex, Grammar or Choice',
    )
