"""`SafeLLM`: several models that write one answer, as an LLM of LlamaIndex.

All eight methods go over one core, `Call`. LlamaIndex's own decorators report the call, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import BoundArguments, signature
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
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR
from pydantic import ConfigDict, Field, field_serializer, field_validator

from safe_integrations.adapters.options import EnsembleOptions, is_member, plain_source
from safe_integrations.adapters.request import (
    CALL_OPTIONS,
    Job,
    Request,
    SafeEngine,
    read_format,
    read_request,
    schema_of,
)
from safe_integrations.adapters.threads import Closing
from safe_integrations.config import EnsembleConfig, ResponseFormat
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.llama_index.answer import Chunk, Chunks, selections
from safe_integrations.llama_index.call import Call, Reported, heard
from safe_integrations.llama_index.events import Reporter
from safe_integrations.llama_index.messages import engine_messages, tool_spec
from safe_integrations.llama_index.objects import as_objects, awhole, makes_an_object, whole
from safe_integrations.llama_index.window import LeftBehind, Metadata, Narrowed
from safe_integrations.messages import Message
from safe_integrations.report import tracing

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools import BaseTool


T = TypeVar("T")
_report_completion: Any = llm_completion_callback()
_report_chat: Any = llm_chat_callback()

_PREDICT: Final = signature(FunctionCallingLLM.predict_and_call)


def _without_span(method: T) -> T:
    """Keeps LlamaIndex from opening a span for a method that only prepares a call."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class SafeLLM(EnsembleOptions, CustomLLM, FunctionCallingLLM):
    """Several models that write one answer.

    The drafter writes, the verifiers check, and where they disagree their predictions are merged.
    The models and all options of an answer are those of `EnsembleOptions`; every option but the
    models can be given per call, too, and unknown ones are refused.

    LlamaIndex packs documents with OpenAI's tokenizer, which needs fewer tokens than most models
    do. So tell it: `Settings.tokenizer = llm.tokenize` (docs/llama-index.md).

    Attributes:
        response_format: What answers must look like: a pydantic class, a JSON schema in OpenAI's
            form, a regular expression, ...
        context_window: Tokens to use at most, prompt and answer together. None takes the smallest
            window of the models.
        is_function_calling_model: Whether LlamaIndex may offer tools to the models. If not, its
            agents and structured output use prompts and parsers.
    """

    model_config = ConfigDict(extra="forbid")

    response_format: ResponseFormat | None = None
    context_window: int | None = Field(default=None, ge=2)
    is_function_calling_model: bool = True

    def __init__(self, **data: Any) -> None:
        data.pop("class_name", None)  # dumps have it
        for name in data.keys() - type(self).model_fields.keys():
            known = ", ".join(type(self).model_fields)
            raise InvalidArgumentError(name, data[name], f"there is no such option; use {known}")
        super().__init__(**data)
        self._request({})
        for member in self._members() if self.context_window else ():
            Narrowed(member, self.context_window or 0)

    @field_validator("response_format", mode="before")
    @classmethod
    def _read_format(cls, given: Any) -> Any:
        return read_format(given, schema_of)

    @field_serializer("drafter", "verifiers")
    def _without_weights(self, source: Any) -> Any:
        if isinstance(source, tuple):
            return [plain_source(item) for item in source]
        return plain_source(source)

    @field_serializer("response_format")
    def _as_read(self, given: ResponseFormat | None) -> dict[str, Any] | None:
        return None if given is None else given.model_dump(by_alias=True)

    def __getstate__(self) -> dict[Any, Any]:
        """Leaves weights behind; what is made of it again says so when it is used."""
        if not self._members():
            return super().__getstate__()
        left = [LeftBehind(s.name) if is_member(s) else s for s in self.sources]
        copy = self.model_copy(update={"drafter": left[0], "verifiers": tuple(left[1:])})
        return super(EnsembleOptions, copy).__getstate__()

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "SafeLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What callers plan with. Nothing is read but where they ask for the context window."""
        return Metadata(
            self._window,
            num_output=self._request({}).options.max_tokens,
            is_chat_model=True,  # every model gets the conversation, in its own form
            is_function_calling_model=self.is_function_calling_model,
            model_name=self.model_name,
        )

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, of the model that needs most of them. Loads the models.

        As `Settings.tokenizer`, it makes LlamaIndex pack no more than the models can read.
        """
        written = text.encode("utf-8", "replace")
        return max((m.tokens.encode(written) for m in self._load_engine().members), key=len)

    def _window(self) -> int:
        return self.context_window or self._read_window()

    def _load_engine(self, config: EnsembleConfig | None = None) -> SafeEngine:
        engine = super()._load_engine(config)
        if self.context_window is None:
            return engine
        drafter, *verifiers = (Narrowed(m, self.context_window) for m in engine.members)
        return SafeEngine(drafter, verifiers, engine.config)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continues a prompt.

        Args:
            prompt: The user's turn. Every model gets it in its own chat template.
            formatted: Whether the system prompt and `completion_to_prompt` are in it already.
            **kwargs: Options of this call (`GenerationConfig`).
        """
        return self._completion(prompt, formatted, kwargs).whole()

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Continues a prompt, piece by piece. Arguments are those of `complete`."""
        return self._completion(prompt, formatted, kwargs).stream()

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Continues a prompt; the event loop stays free. Arguments are those of `complete`."""
        return await self._completion(prompt, formatted, kwargs).awhole()

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Continues a prompt, piece by piece. Arguments are those of `complete`."""
        return await self._completion(prompt, formatted, kwargs).astream()

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers messages.

        Args:
            messages: The conversation. Every model gets it in its own chat template.
            **kwargs: Options of this call (`GenerationConfig`).
        """
        return self._reply(messages, kwargs).whole()

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers messages, piece by piece. Arguments are those of `chat`."""
        return self._reply(messages, kwargs).stream()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers messages; the event loop stays free. Arguments are those of `chat`."""
        return await self._reply(messages, kwargs).awhole()

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Answers messages, piece by piece. Arguments are those of `chat`."""
        return await self._reply(messages, kwargs).astream()

    def _completion(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> Reported[CompletionResponse]:
        return Reported(
            lambda: self._prompted(prompt, formatted, kwargs),
            Chunk.completion,
            lambda answer: _report_completion(answer)(self, prompt, **kwargs),
            self._window,
        )

    def _reply(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> Reported[ChatResponse]:
        return Reported(
            lambda: self._asked(messages, kwargs),
            Chunk.chat,
            lambda answer: _report_chat(answer)(self, messages, **kwargs),
            self._window,
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
        asked = self._predicting(*args, **kwargs)
        return super().predict_and_call(*asked.args[1:], **asked.kwargs)

    @_without_span
    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """The same for event loops."""
        asked = self._predicting(*args, **kwargs)
        return await super().apredict_and_call(*asked.args[1:], **asked.kwargs)

    def _predicting(self, *args: Any, **kwargs: Any) -> BoundArguments:
        asked = _PREDICT.bind(self, *args, **kwargs)
        asked.apply_defaults()
        asked.arguments["error_on_no_tool_call"] = asked.arguments["error_on_no_tool_call"] or None
        return asked

    def stream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseGen:
        """Answers with calls of tools, piece by piece. Arguments are those of LlamaIndex.

        Raises:
            IncompleteAnswerError: A call that is asked for was cut off: it would be taken for a
                whole one that is shorter.
        """
        asked = self._prepare_chat_with_tools(tools, *args, **kwargs)
        stream = self.stream_chat(**asked)
        return whole(stream, tools) if self._forces(asked) else stream

    async def astream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """The same for event loops."""
        asked = self._prepare_chat_with_tools(tools, *args, **kwargs)
        stream = await self.astream_chat(**asked)
        return Closing(awhole(stream, tools), stream.aclose) if self._forces(asked) else stream

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], *_: Any, **kwargs: Any
    ) -> ChatResponse:
        return as_objects(response, tools)

    def _forces(self, asked: dict[str, Any]) -> bool:
        said = {name: asked[name] for name in ("tools", "tool_choice")}
        return self._request(said).options.tool_choice not in ("auto", "none")

    @_without_span
    @heard()
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
            forced = tool_required or all(map(makes_an_object, tools))
            kwargs["tool_choice"] = "required" if forced and tools else "auto"
        return {
            "messages": messages,
            "tools": [tool_spec(tool) for tool in tools],
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    @heard()
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

    @heard()
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
        span = tracing.generation_span(self.model_name, request.options, prompt=conversation)
        job = Job(request, conversation, lambda: self._load_engine(request.ensemble), span)
        answer = Chunks(self.model_name, request.options, self.attach_rounds)
        return Call(job, answer, Reporter.here())

    def _request(self, kwargs: dict[str, Any]) -> Request:
        """How an answer is made: this LLM's options, and those of the call over them."""
        own = {name: getattr(self, name, None) for name in CALL_OPTIONS}
        return read_request(own, kwargs, tool_spec, schema_of)
