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
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR
from pydantic import ConfigDict, field_serializer

from safe_integrations import safe_engine
from safe_integrations.adapters.request import EnsembleOptions
from safe_integrations.config import (
    EnsembleConfig,
    GenerationConfig,
    ResponseFormat,
)
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.llama_index.call import Call, astream, stream
from safe_integrations.llama_index.events import Reporter
from safe_integrations.llama_index.messages import (
    engine_messages,
    engine_tool,
    tool_choice,
    tool_spec,
)
from safe_integrations.messages import Message
from safe_integrations.models import load as loading
from safe_integrations.models.spec import ModelSpec
from safe_integrations.report import tracing

if TYPE_CHECKING:
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.tools import BaseTool


T = TypeVar("T")
_report_completion: Any = llm_completion_callback()
_report_chat: Any = llm_chat_callback()

_GENERATION: Final = frozenset(GenerationConfig.model_fields)
_ENSEMBLE: Final = frozenset(EnsembleConfig.model_fields)


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
        self._configs({})

    @field_serializer("drafter", "verifiers")
    def _without_weights(self, source: Any) -> Any:
        """Models as names, or as what they are loaded from."""
        if isinstance(source, tuple):
            return [self._without_weights(item) for item in source]
        if isinstance(source, ModelSpec):
            return source.model_dump(exclude_defaults=True)
        return source if source is None or isinstance(source, str) else source.name

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "SafeLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What callers plan with. Known without loading weights."""
        cards = [loading.peek(source) for source in self.sources]
        return LLMMetadata(
            context_window=min(card.context_window for card in cards),
            num_output=self._configs({})[1].max_tokens,
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
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Reads the tool calls out of an answer.

        Args:
            response: The answer, or a part of it while it streams.
            error_on_no_tool_call: Whether an answer without a call is an error.
            **kwargs: Not used.

        Raises:
            ValueError: There is no call.
        """
        calls = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
        if error_on_no_tool_call and not calls:
            reason = response.raw.get("finish_reason") if isinstance(response.raw, dict) else None
            cut = ", and was cut off: raise max_tokens" if reason == "length" else ""
            raise ValueError(
                f"the model called no tool; it wrote {response.message.content!r}{cut}"
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=_arguments(call.tool_kwargs),
            )
            for call in calls
        ]

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

    # Core asks for structured output with a tool that must be called, but not where it streams.

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        program = self._streaming_program(output_cls, prompt)
        stream: Generator[Any, None, None] = program.stream_call(
            llm_kwargs=llm_kwargs, **prompt_args
        )
        return stream

    async def _structured_astream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        program = self._streaming_program(output_cls, prompt)
        stream: AsyncGenerator[Any, None] = await program.astream_call(
            llm_kwargs=llm_kwargs, **prompt_args
        )
        return stream

    def _streaming_program(self, output_cls: type[Any], prompt: PromptTemplate) -> Any:
        from llama_index.core.program.utils import get_program_for_llm
        from llama_index.core.types import PydanticProgramMode

        mode = self.pydantic_program_mode
        by_tool = mode in (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)
        forced = {"tool_choice": "required"} if by_tool else {}
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode, **forced)

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
        ensemble, options = self._configs(kwargs)
        model = self.metadata.model_name
        return Call(
            conversation,
            options,
            lambda: safe_engine.load_engine(self.drafter, self.verifiers, ensemble),
            model,
            Reporter.here(),
            tracing.generation_span(model, options, prompt=conversation),
        )

    def _configs(self, kwargs: dict[str, Any]) -> tuple[EnsembleConfig, GenerationConfig]:
        """How an answer is made: this LLM's options, and those of the call over them."""
        for name in kwargs.keys() - _GENERATION - _ENSEMBLE:
            known = ", ".join(sorted(_GENERATION | _ENSEMBLE))
            raise InvalidArgumentError(
                name, kwargs[name], f"there is no such option of a call; use one of {known}"
            )
        own = {name: getattr(self, name, None) for name in _GENERATION | _ENSEMBLE}
        given = {**own, **{name: value for name, value in kwargs.items() if value is not None}}
        given = {name: value for name, value in given.items() if value is not None}
        if "tools" in given:
            given["tools"] = tuple(engine_tool(tool) for tool in given["tools"])
        if "tool_choice" in given:
            given["tool_choice"] = tool_choice(given["tool_choice"])
            if given["tool_choice"] not in ("auto", "none"):
                given.pop("stop", None)  # a call ends by its grammar; a stop would break it
        return (
            EnsembleConfig(**{k: v for k, v in given.items() if k in _ENSEMBLE}),
            GenerationConfig(**{k: v for k, v in given.items() if k in _GENERATION}),
        )


def _arguments(written: dict[str, Any] | str) -> dict[str, Any]:
    """A call's arguments, as far as they can be read."""
    if not isinstance(written, str):
        return written
    try:
        read = parse_partial_json(written)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}
