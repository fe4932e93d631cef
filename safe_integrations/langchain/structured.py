"""`with_structured_output`: answers as objects, guaranteed by the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from json import loads
from operator import itemgetter
from typing import Any, Final, Literal, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.outputs import Generation
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableMap,
    RunnablePassthrough,
)
from langchain_core.utils.pydantic import is_basemodel_subclass

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain.answer import CLOSED, METADATA, VIOLATION
from safe_integrations.langchain.tools import json_schema, openai_tool
from safe_integrations.report.verdicts import why_closed

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
        return answer, _CallParser(tools=[schema], first_tool_only=True)
    arguments = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return answer, arguments | schema.model_validate if _is_pydantic(schema) else arguments


def _by_json(
    model: BaseChatModel, schema: Any, method: Method, strict: bool | None
) -> tuple[Runnable[Any, Any], Runnable[Any, Any]]:
    wanted: dict[str, Any] = {"type": "json_object"}
    if schema is not None:
        said = {"schema": json_schema(schema, strict), "strict": strict}
        if strict is None and isinstance(schema, Mapping):
            said["strict"] = schema.get("json_schema", schema).get("strict")
        wanted = {"type": "json_schema", "json_schema": said}
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


class _CallParser(PydanticToolsParser):
    """What its class does not take is an error of the parser, as in an answer that is text."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        try:
            return super().parse_result(result, partial=partial)
        except OutputParserException:
            raise
        except ValueError as error:  # pydantic's is one, too
            raise OutputParserException(str(error)) from error


def _is_pydantic(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _complete(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    seen: list[BaseMessage] = []
    for message in messages:
        seen.append(_with_closed(message, seen))
        yield seen[-1]
        _check(seen)


async def _acomplete(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    seen: list[BaseMessage] = []
    async for message in messages:
        seen.append(_with_closed(message, seen))
        yield seen[-1]
        _check(seen)


def _check(seen: Sequence[BaseMessage]) -> None:
    """An answer that was cut off may look like a shorter one: refuse it, and one that is wrong."""
    told = seen[-1].response_metadata
    closed, violation = told.get(CLOSED), told.get(VIOLATION)
    text = "".join(message.text for message in seen)
    if closed is not None and closed["on_length"] == "error":
        raise OutputParserException(
            f"the object was {why_closed(closed['cut'])}", llm_output=closed["text"]
        )
    if violation is not None:
        raise OutputParserException(violation, llm_output=text)
    if closed is None and any(not end["whole"] for end in told.get(METADATA, ())):
        why = "the answer was cut off before the object was complete: raise max_tokens"
        raise OutputParserException(why, llm_output=text)


def _with_closed(message: BaseMessage, before: Sequence[BaseMessage]) -> BaseMessage:
    """The same; a call that max_tokens has closed counts where it stands for an object."""
    closed = message.response_metadata.get(CLOSED)
    if closed is None or closed["on_length"] == "error":
        return message
    if isinstance(message, AIMessageChunk):
        told = [c for m in before if isinstance(m, AIMessageChunk) for c in m.tool_call_chunks]
        rest = closed["text"].removeprefix("".join(chunk["args"] or "" for chunk in told))
        chunks = [tool_call_chunk(args=rest, index=told[-1]["index"])] if told else []
        return message.model_copy(update={"tool_call_chunks": chunks, "invalid_tool_calls": []})
    if isinstance(message, AIMessage) and message.invalid_tool_calls:
        (call,) = message.invalid_tool_calls
        whole = {"name": call["name"], "args": loads(closed["text"]), "id": call["id"]}
        return message.model_copy(update={"tool_calls": [whole], "invalid_tool_calls": []})
    return message
