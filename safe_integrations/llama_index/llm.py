"""`SafeLLM`: several models that write one answer, as an LLM of LlamaIndex.

All eight methods go over one core, `Call`. LlamaIndex's own decorators report the call, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR
from pydantic import ConfigDict, field_serializer, field_validator

from safe_integrations.adapters.options import EnsembleOptions, card_of, plain_source
from safe_integrations.adapters.request import (
    CALL_OPTIONS,
    Job,
    Request,
    read_format,
    read_request,
)
from safe_integrations.config import ResponseFormat
from safe_integrations.errors import IncompleteAnswerError, InvalidArgumentError
from safe_integrations.llama_index.answer import Objects, kept, selections
from safe_integrations.llama_index.call import Call, astream, stream
from safe_integrations.llama_index.events import Reporter
from safe_integrations.llama_index.messages import engine_messages, json_schema, tool_spec
from safe_integrations.messages import Message
from safe_integrations.report import tracing

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.tools import BaseTool


T = TypeVar("T")
_report_completion: Any = llm_completion_callback()
_report_chat: Any = llm_chat_callback()

_BY_TOOL: Final = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)


def _without_span(method: T) -> T:
    """Keeps LlamaIndex from opening a span for a method that only prepares a call."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class SafeLLM(EnsembleOptions, CustomLLM, FunctionCallingLLM):
    """Several models that write one answer.

    The drafter writes, the verifiers check, and where they disagree their predictions are merged.
    The models and all options of an answer are those of `EnsembleOptions`; every option but the
    models can be given per call, too, and unknown ones are refused.

    Attributes:
        response_format: What answers must look like: a JSON schema, a regular expression, ...
    """

    model_config = ConfigDict(extra="forbid")

    response_format: ResponseFormat | None = None

    def __init__(self, **data: Any) -> None:
        for name in data.keys() - type(self).model_fields.keys():
            known = ", ".join(type(self).model_fields)
            raise InvalidArgumentError(name, data[name], f"there is no such option; use {known}")
        super().__init__(**data)
        self._request({})

    @field_validator("response_format", mode="before")
    @classmethod
    def _read_format(cls, given: Any) -> Any:
        return read_format(given, json_schema)

    @field_serializer("drafter", "verifiers")
    def _without_weights(self, source: Any) -> Any:
        if isinstance(source, tuple):
            return [plain_source(item) for item in source]
        return plain_source(source)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "SafeLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What callers plan with. Known without loading weights."""
        cards = [card_of(source) for source in self.sources]
        return LLMMetadata(
            context_window=min(card.context_window for card in cards),
            num_output=self._request({}).options.max_tokens,
            is_chat_model=cards[0].is_chat_model,
            is_function_calling_model=True,
            model_name="+".join(card.name for card in cards),
        )

    async def _look_up(self) -> None:
        """Finds out in a thread, once, what `metadata` says: LlamaIndex asks for it on the loop."""
        await asyncio.to_thread(getattr, self, "metadata")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continues a prompt.

        Args:
            prompt: The user's turn. Every model gets it in its own chat template.
            formatted: Whether the system prompt and `completion_to_prompt` are in it already.
            **kwargs: Options of this call (`GenerationConfig`).
        """

        def answer(_self: Any, prompt: str, **_kwargs: Any) -> CompletionResponse:
            return self._prompted(prompt, formatted, kwargs).run().completion()

        response: CompletionResponse = _report_completion(answer)(self, prompt, **kwargs)
        return response

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Continues a prompt, piece by piece. Arguments are those of `complete`."""
        return stream(
            lambda: self._prompted(prompt, formatted, kwargs),
            lambda chunk: chunk.completion(chunk.delta),
            lambda start: _report_completion(start)(self, prompt, **kwargs),
        )

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Continues a prompt; the event loop stays free. Arguments are those of `complete`."""
        await self._look_up()

        async def answer(_self: Any, prompt: str, **_kwargs: Any) -> CompletionResponse:
            return (await self._prompted(prompt, formatted, kwargs).arun()).completion()

        response: CompletionResponse = await _report_completion(answer)(self, prompt, **kwargs)
        return response

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Continues a prompt, piece by piece. Arguments are those of `complete`."""
        await self._look_up()
        return await astream(
            lambda: self._prompted(prompt, formatted, kwargs),
            lambda chunk: chunk.completion(chunk.delta),
            lambda start: _report_completion(start)(self, prompt, **kwargs),
        )

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers messages.

        Args:
            messages: The conversation. Every model gets it in its own chat template.
            **kwargs: Options of this call (`GenerationConfig`).
        """

        def answer(_self: Any, messages: Sequence[ChatMessage], **_kwargs: Any) -> ChatResponse:
            return self._asked(messages, kwargs).run().chat()

        response: ChatResponse = _report_chat(answer)(self, messages, **kwargs)
        return response

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers messages, piece by piece. Arguments are those of `chat`."""
        return stream(
            lambda: self._asked(messages, kwargs),
            lambda chunk: chunk.chat(chunk.delta),
            lambda start: _report_chat(start)(self, messages, **kwargs),
        )

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers messages; the event loop stays free. Arguments are those of `chat`."""
        await self._look_up()

        async def answer(
            _self: Any, messages: Sequence[ChatMessage], **_kwargs: Any
        ) -> ChatResponse:
            return (await self._asked(messages, kwargs).arun()).chat()

        response: ChatResponse = await _report_chat(answer)(self, messages, **kwargs)
        return response

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Answers messages, piece by piece. Arguments are those of `chat`."""
        await self._look_up()
        return await astream(
            lambda: self._asked(messages, kwargs),
            lambda chunk: chunk.chat(chunk.delta),
            lambda start: _report_chat(start)(self, messages, **kwargs),
        )

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool | None = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Reads the tool calls out of an answer.

        Args:
            response: The answer, or a part of it while it streams.
            error_on_no_tool_call: Whether an answer without a call is an error. None: only one
                with a call that was cut off. False: a selection that no tool answers to stands
                for such a call.
            **kwargs: Not used.

        Raises:
            IncompleteAnswerError: A call was cut off, or is broken otherwise.
            ValueError: There is no call.
        """
        # agents do not ask for an error, and have to be told of a broken call all the same
        broken = error_on_no_tool_call is not False
        return selections(response, bool(error_on_no_tool_call), broken)

    @_without_span
    def predict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Has the model call tools, and calls them. Arguments are those of LlamaIndex.

        Raises:
            IncompleteAnswerError: A call was cut off. Then no tool is called.
            ValueError: There is no call, and `error_on_no_tool_call`.
        """
        kwargs["error_on_no_tool_call"] = kwargs.get("error_on_no_tool_call", True) or None
        return super().predict_and_call(*args, **kwargs)

    @_without_span
    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """The same for event loops."""
        kwargs["error_on_no_tool_call"] = kwargs.get("error_on_no_tool_call", True) or None
        return await super().apredict_and_call(*args, **kwargs)

    @_without_span
    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
            messages.append(user_msg)
        if kwargs.get("tool_choice") is None:
            kwargs["tool_choice"] = "required" if tool_required else "auto"
        return {
            "messages": messages,
            "tools": [tool_spec(tool) for tool in tools],
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    @_without_span
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

    @_without_span
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
        if self.pydantic_program_mode not in _BY_TOOL:
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
        if self.pydantic_program_mode not in _BY_TOOL:
            given = (output_cls, prompt, llm_kwargs)
            return await super()._structured_astream_call(*given, **prompt_args)
        kwargs = self._forced(output_cls, prompt, llm_kwargs, prompt_args)
        objects = Objects(self, output_cls, self._on_length(llm_kwargs))
        stream = await self.astream_chat_with_tools(**kwargs)
        return (objects.take(response) async for response in stream)

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

    def _prompted(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> Call:
        """The call that a prompt asks for. A formatted prompt holds the system prompt already."""
        if formatted:
            return self._call([Message("user", prompt)], kwargs)
        if self.query_wrapper_prompt is not None:
            prompt = self.query_wrapper_prompt.format(query_str=prompt)
        if self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        system = [Message("system", self.system_prompt)] if self.system_prompt else []
        return self._call([*system, Message("user", prompt)], kwargs)

    def _asked(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Call:
        """The call that messages ask for."""
        conversation = engine_messages(messages)
        if self.system_prompt and all(m.role != "system" for m in conversation):
            messages = [ChatMessage(self.system_prompt, role=MessageRole.SYSTEM), *messages]
            conversation.insert(0, Message("system", self.system_prompt))
        to_prompt = self.messages_to_prompt
        if to_prompt is not None and to_prompt is not messages_to_prompt:
            conversation = [Message("user", to_prompt(messages))]
        return self._call(conversation, kwargs)

    def _call(self, conversation: Sequence[Message], kwargs: dict[str, Any]) -> Call:
        request = self._request(kwargs)
        model = self.metadata.model_name
        span = tracing.generation_span(model, request.options, prompt=conversation)
        job = Job(request, conversation, lambda: self._load_engine(request.ensemble), span)
        return Call(job, model, Reporter.here())

    def _request(self, kwargs: dict[str, Any]) -> Request:
        """How an answer is made: this LLM's options, and those of the call over them."""
        own = {name: getattr(self, name, None) for name in CALL_OPTIONS}
        return read_request(own, kwargs, tool_spec, json_schema)
