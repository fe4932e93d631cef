"""Answers that must hold a call, and calls that only stand for an object."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from llama_index.core.base.llms.types import ChatResponse, ChatResponseAsyncGen, ChatResponseGen

from safe_integrations.llama_index.answer import selections, with_closed


def makes_an_object(tool: object) -> bool:
    """Whether it is the tool by which core asks for structured output.

    Core says that it must be called, but not where the object streams.
    """
    return getattr(getattr(tool, "fn", None), "__qualname__", "").startswith("get_function_tool.")


def whole(stream: ChatResponseGen, tools: Sequence[object]) -> ChatResponseGen:
    """A stream that ends with an error where its call is not whole."""
    with closing(stream):
        for response in stream:
            yield _checked(response, tools)


async def awhole(stream: ChatResponseAsyncGen, tools: Sequence[object]) -> ChatResponseAsyncGen:
    """The same for event loops."""
    async for response in stream:
        yield _checked(response, tools)


def _checked(response: ChatResponse, tools: Sequence[object]) -> ChatResponse:
    if response.raw is None:  # it is not the last
        return response
    response = as_objects(response, tools)
    selections(response, on_missing=True, on_broken=True)
    return response


def as_objects(response: ChatResponse, tools: Sequence[object]) -> ChatResponse:
    """An answer whose calls are only objects where they call what makes these."""
    return with_closed(response) if all(map(makes_an_object, tools)) else response
