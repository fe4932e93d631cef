"""Structured output by a tool that must be called."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

from safe_integrations.errors import IncompleteAnswerError
from safe_integrations.llama_index.answer import Objects, kept

if TYPE_CHECKING:
    from llama_index.core.prompts import PromptTemplate

T = TypeVar("T")
_BY_TOOL: Final = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)


def without_span(method: T) -> T:
    """Keeps LlamaIndex from opening a span for a method that only prepares a call."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class Structured(FunctionCallingLLM):
    """What `SafeLLM` does otherwise than LlamaIndex where an object is wanted."""

    if TYPE_CHECKING:
        on_length: Literal["error", "close"] | None
        is_function_calling_model: bool

    @without_span
    def structured_predict(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An object of a class. Arguments are those of LlamaIndex.

        Raises:
            IncompleteAnswerError: It was cut off, or max_tokens has brought it to its end and
                `on_length` is not `close`.
        """
        try:
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        except IncompleteAnswerError as error:
            return kept(error, output_cls, self._on_length(llm_kwargs))

    @without_span
    async def astructured_predict(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """The same for event loops."""
        try:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        except IncompleteAnswerError as error:
            return kept(error, output_cls, self._on_length(llm_kwargs))

    def _on_length(self, llm_kwargs: dict[str, Any] | None) -> str | None:
        return (llm_kwargs or {}).get("on_length") or self.on_length

    # Core asks for structured output with a tool that must be called, but not where it streams;
    # and there the last object would be one that was cut off.

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        if not self._asks_by_tool:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        kwargs = self._forced(output_cls, prompt, llm_kwargs, prompt_args)
        objects = Objects(self, output_cls, self._on_length(llm_kwargs))
        return (objects.take(response) for response in self.stream_chat_with_tools(**kwargs))

    async def _structured_astream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        if not self._asks_by_tool:
            given = (output_cls, prompt, llm_kwargs)
            return await super()._structured_astream_call(*given, **prompt_args)
        kwargs = self._forced(output_cls, prompt, llm_kwargs, prompt_args)
        objects = Objects(self, output_cls, self._on_length(llm_kwargs))
        stream = await self.astream_chat_with_tools(**kwargs)
        return (objects.take(response) async for response in stream)

    @property
    def _asks_by_tool(self) -> bool:
        return self.is_function_calling_model and self.pydantic_program_mode in _BY_TOOL

    def _forced(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> dict[str, Any]:
        from llama_index.core.program.function_program import get_function_tool

        return {
            **(llm_kwargs or {}),
            "tools": [get_function_tool(output_cls)],
            "chat_history": prompt.format_messages(llm=self, **prompt_args),
            "tool_choice": "required",
            "allow_parallel_tool_calls": False,
        }
