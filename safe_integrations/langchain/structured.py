"""`with_structured_output`: answers as objects, guaranteed by the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from json import JSONDecoder, loads
from operator import itemgetter
from typing import Any, Final, Literal, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableMap,
    RunnablePassthrough,
)
from langchain_core.utils.pydantic import is_basemodel_subclass

from safe_integrations.adapters.answer import why_closed
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain.answer import CLOSED, METADATA
from safe_integrations.langchain.tools import json_schema, openai_tool

Method = Literal["function_calling", "json_schema", "json_mode"]
METHODS: Final[tuple[str, ...]] = get_args(Method)


def structured(
    model: BaseChatModel,
    schema: Mapping[str, Any] | type | None,
    *,
    method: Method,
    strict: bool | None,
    include_raw: bool,
) -> Runnable[Any, Any]:
    """The model, followed by a parser; see `ChatSafe.with_structured_output`."""
    if method not in METHODS:
        raise InvalidArgumentError("method", method, f"use one of {', '.join(METHODS)}")
    if schema is None and method != "json_mode":
        raise InvalidArgumentError("schema", schema, "only json_mode works without a schema")
    make = _by_call if method == "function_calling" else _by_json
    answer, parser = make(model, schema, method, strict)
    parsed: Runnable[Any, Any] = RunnableGenerator(_complete, _acomplete) | parser
    if not include_raw:
        return answer | parsed
    tried = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parsed, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=answer) | tried.with_fallbacks([failed], exception_key="parsing_error")


def _by_call(
    model: BaseChatModel, schema: Any, method: Method, strict: bool | None
) -> tuple[Runnable[Any, Any], Runnable[Any, Any]]:
    tool = openai_tool(schema, strict)
    name = tool["function"]["name"]
    answer = model.bind_tools(
        [tool], tool_choice=name, parallel_tool_calls=False, **_traced(schema, method, strict)
    )
    if _is_pydantic(schema) and name == schema.__name__:
        return answer, PydanticToolsParser(tools=[schema], first_tool_only=True)
    arguments = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return answer, arguments | schema.model_validate if _is_pydantic(schema) else arguments


def _by_json(
    model: BaseChatModel, schema: Any, method: Method, strict: bool | None
) -> tuple[Runnable[Any, Any], Runnable[Any, Any]]:
    wanted: dict[str, Any] = {"type": "json_object"}
    if schema is not None:
        wanted = {"type": "json_schema", "json_schema": {"schema": json_schema(schema, strict)}}
    answer = model.bind(response_format=wanted, **_traced(schema, method, strict))
    if _is_pydantic(schema):
        return answer, PydanticOutputParser(pydantic_object=schema)
    return answer, JsonOutputParser()


def _traced(schema: Any, method: Method, strict: bool | None) -> dict[str, Any]:
    """What LangChain shows to tracers; it takes this out again before it calls the model."""
    kwargs = {"method": method, "strict": strict}
    if isinstance(schema, type) and not _is_pydantic(schema):
        schema = openai_tool(schema)  # it would read the class by itself, circles or not
    return {"ls_structured_output_format": {"kwargs": kwargs, "schema": schema or {}}}


def _is_pydantic(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _complete(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    seen: list[BaseMessage] = []
    for message in messages:
        yield _kept(message)
        seen.append(message)
        _check(seen)


async def _acomplete(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    seen: list[BaseMessage] = []
    async for message in messages:
        yield _kept(message)
        seen.append(message)
        _check(seen)


def _check(seen: Sequence[BaseMessage]) -> None:
    """An answer that was cut off may look like a shorter one: refuse it."""
    told = seen[-1].response_metadata
    closed = told.get(CLOSED)
    if closed is not None and closed["on_length"] == "close":
        return
    if any(not end["whole"] for end in told.get(METADATA, ())):
        why = "cut off before it was complete: raise max_tokens"
        why = why if closed is None else why_closed(closed["cut"])
        raise OutputParserException(f"the object was {why}", llm_output=_written(seen))


def _written(seen: Sequence[BaseMessage]) -> str:
    """An object as text; also where it stands in a call that is invalid since it was closed."""
    calls: list[Any] = []
    for message in seen:
        calls += getattr(message, "tool_call_chunks", ()) or getattr(
            message, "invalid_tool_calls", ()
        )
    text = "".join(call["args"] or "" for call in calls)
    with suppress(ValueError):  # what breaks it for LangChain stands behind it
        return text[: JSONDecoder().raw_decode(text)[1]]
    return "".join(message.text for message in seen)


def _kept(message: BaseMessage) -> BaseMessage:
    """The same; a call that max_tokens has ended counts here, where it stands for an object."""
    closed = message.response_metadata.get(CLOSED)
    if closed is None or closed["on_length"] == "error":
        return message
    if isinstance(message, AIMessageChunk) and not message.invalid_tool_calls:
        return message
    if isinstance(message, AIMessageChunk):
        return message.model_copy(update={"tool_call_chunks": [], "invalid_tool_calls": []})
    if isinstance(message, AIMessage) and message.invalid_tool_calls:
        (call,) = message.invalid_tool_calls
        whole = {"name": call["name"], "args": loads(_written([message])), "id": call["id"]}
        return message.model_copy(update={"tool_calls": [whole], "invalid_tool_calls": []})
    return message
