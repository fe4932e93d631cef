"""`with_structured_output`: answers as objects, guaranteed by the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from operator import itemgetter
from typing import Any, Final, Literal, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
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
from safe_integrations.langchain.answer import VIOLATION
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
    for message in messages:
        yield message
        _check(message)


async def _acomplete(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    async for message in messages:
        yield message
        _check(message)


def _check(message: BaseMessage) -> None:
    """An answer that was cut off may look like a shorter one: refuse it, and one that is wrong."""
    violation = message.response_metadata.get(VIOLATION)
    if violation is not None:
        raise OutputParserException(violation, llm_output=message.text)
    if message.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "the answer was cut off before the object was complete: raise max_tokens",
            llm_output=message.text,
        )
