"""The ensemble as a LangChain chat model."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, closing
from typing import Any, Self, cast
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import (
    BaseChatModel,
    LangSmithParams,
    LanguageModelInput,
)
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, model_validator

from safe_integrations import __version__
from safe_integrations.adapters.options import EnsembleOptions, identity_of, is_served
from safe_integrations.adapters.request import (
    CALL_OPTIONS,
    Job,
    Request,
    read_request,
    read_tool_choice,
)
from safe_integrations.adapters.threads import InThread
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain.answer import PROVIDER, Chunks
from safe_integrations.langchain.errors import overflow_of_langchain
from safe_integrations.langchain.events import Listeners
from safe_integrations.langchain.messages import engine_messages
from safe_integrations.langchain.profile import profile_of
from safe_integrations.langchain.structured import Method as StructuredMethod
from safe_integrations.langchain.structured import structured
from safe_integrations.langchain.tools import AnyTool, json_schema, openai_tool
from safe_integrations.report.tracing import generation_span


class ChatSafe(EnsembleOptions, BaseChatModel):
    """Several language models that write one answer together, as a LangChain chat model.

    The drafter writes, the verifiers check, and where they disagree their predictions are merged.
    The models and all options of an answer are those of `EnsembleOptions`; every option but the
    models can be given per call, too.

    Every verification, every ensemble and every lost model is a custom event (`safe_verification`,
    `safe_ensemble`, `safe_model_lost`) under this model's run id; docs/events.md describes them.

    Attributes:
        drafter: The model that writes. `model` is another name for it.
        stop: Texts that end an answer. `stop_sequences` is another name for it.
        model_kwargs: Further options of every call, such as `response_format`.
        eager_tools: Whether a user is answered with a tool call first, where tools are bound and no
            `tool_choice` is given. Small models hardly ever call on their own. Once a result is
            there, they are free again.
        streaming: Whether `invoke` streams to callbacks.
        max_retries: Taken and not used, like `api_key`, but refused where servers compute: each
            has its own in its `ModelSpec`.
        api_key: See there.
    """

    drafter: Any = Field(
        default=None, validation_alias=AliasChoices("drafter", "model", "model_name")
    )
    stop: tuple[str, ...] | None = Field(
        default=None, validation_alias=AliasChoices("stop", "stop_sequences")
    )
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    eager_tools: bool = False
    streaming: bool | None = None
    max_retries: int | None = None
    api_key: SecretStr | None = None

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        self._request({})
        for name in ("api_key", "max_retries"):
            if getattr(self, name) is not None and any(map(is_served, self.sources)):
                remedy = "give it to the ModelSpec of each served model"
                raise InvalidArgumentError(name, "...", remedy)
        self._add_version("safe-integrations", __version__)
        if self.profile is None:
            del self.__dict__["profile"]
        return self

    # What LangChain asks about the model

    @property
    def _llm_type(self) -> str:
        return "chat-safe"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that can change an answer: LangChain's cache looks answers up by it."""
        own = ("model_kwargs", "attach_rounds", "eager_tools", *sorted(CALL_OPTIONS))
        given = {name: value for name in own if (value := getattr(self, name, None)) is not None}
        return {
            "model_name": self.model_name,
            "models": [identity_of(m) for m in self.sources],
            **given,
            "version": __version__,
        }

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        if stop is None and self.stop is not None:  # LangChain would take ours out
            stop = list(self.stop)
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = self._request({k: v for k, v in kwargs.items() if k != "model"}, stop).options
        params = LangSmithParams(
            ls_provider=PROVIDER,
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat",
            ls_temperature=options.temperature,
            ls_max_tokens=options.max_tokens,
        )
        if options.stop:
            params["ls_stop"] = list(options.stop)
        return params

    def __getattr__(self, name: str) -> Any:
        if name == "profile":  # made when it is asked for: looking the models up takes seconds
            return profile_of(self.model_name, self._read_window)
        return super().__getattr__(name)  # type: ignore[misc]

    def get_token_ids(self, text: str) -> list[int]:
        """The drafter's tokens of a text. Loads the models."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._load_engine().drafter.tokens.encode(text.encode())

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[AnyTool] | None = None
    ) -> int:
        """How long a conversation is for the drafter, as its template writes it. Loads the models.

        Args:
            messages: The conversation.
            tools: What it may call.
        """
        if not messages:
            return 0
        options = self._request({"tools": tools}).options
        drafter = self._load_engine().drafter
        return len(drafter.render(engine_messages(messages), options.tools, options.template_args))

    # Tools and structure

    def bind_tools(
        self,
        tools: Sequence[AnyTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call.

        Args:
            tools: Functions, Pydantic classes, TypedDicts, LangChain tools, or OpenAI's dicts.
            tool_choice: `auto`, `none`, `any` or `required` (at least one call), or one tool: by
                name, or in OpenAI's or Anthropic's form. True is `any`. A call that is asked for
                is guaranteed, and so is that its arguments follow the tool's schema; stop strings
                do not cut it.
            strict: True reads schemas OpenAI's strict way, every argument is required, and refuses
                before any work what a grammar cannot enforce of them. Otherwise that is checked on
                the finished call, which is invalid where it breaks it; None warns of it, once.
            parallel_tool_calls: Whether one answer may hold several calls. None allows it unless
                a call is asked for.
            **kwargs: Further options of the calls.
        """
        formatted = [openai_tool(tool, strict) for tool in tools]
        if tool_choice is not None:
            names = [tool["function"]["name"] for tool in formatted]
            kwargs["tool_choice"] = read_tool_choice(tool_choice, names)
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=formatted, **kwargs)

    def with_structured_output(
        self,
        schema: Mapping[str, Any] | type | None = None,
        *,
        method: StructuredMethod = "function_calling",
        strict: bool | None = None,
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """The model with answers that are objects of a schema, by construction.

        Args:
            schema: A Pydantic class (v1 or v2), a TypedDict, a JSON schema, or an OpenAI function.
            method: `function_calling` shows the schema to the models and makes them call it;
                `json_schema` and `json_mode` make the answer itself an object of the schema.
                `json_mode` also works without one: any JSON object.
            strict: True reads the schema OpenAI's strict way, every field is required, and refuses
                before any work what a grammar cannot enforce of it. Otherwise that is checked on
                the finished object, which is then a parsing error; None warns of it, once.
            include_raw: Whether to return `raw`, `parsed` and `parsing_error` instead of the
                object alone.
            **kwargs: None.

        Returns:
            A runnable that gives an instance of a Pydantic class, else a dict.

        Raises:
            InvalidArgumentError: The method is unknown, or there is no schema where it needs one.
        """
        for name, value in kwargs.items():
            raise InvalidArgumentError(name, value, "there is no such option; use bind()")
        return structured(self, schema, method=method, strict=strict, include_raw=include_raw)

    # Answering

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Answers in chunks. Closing the iterator stops the models."""
        config, listeners = Listeners.of_next_run(config, self, CallbackManager)
        chunks = cast(
            "Generator[AIMessageChunk, None, None]",
            super().stream(input, config, **kwargs),
        )
        with closing(chunks):
            while True:
                with listeners.noted():
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Answers in chunks. Closing the iterator, or cancelling the task, stops the models."""
        config, listeners = Listeners.of_next_run(config, self, AsyncCallbackManager)
        chunks = super().astream(input, config, **kwargs)
        return listeners.following(cast("AsyncGenerator[AIMessageChunk, None]", chunks))

    # LangChain gives the run by its name, to these two only

    def _generate_with_cache(self, *args: Any, **kwargs: Any) -> ChatResult:
        with Listeners.of_run(kwargs.get("run_manager")).noted():
            return super()._generate_with_cache(*args, **kwargs)

    async def _agenerate_with_cache(self, *args: Any, **kwargs: Any) -> ChatResult:
        listeners = Listeners.of_run(kwargs.get("run_manager"))
        try:
            with listeners.noted():
                return await super()._agenerate_with_cache(*args, **kwargs)
        finally:
            await listeners.aclose()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chunks = [chunk async for chunk in self._astream(messages, stop, run_manager, **kwargs)]
        return generate_from_stream(iter(chunks))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        listeners = Listeners.of_run(run_manager)
        job = self._job(messages, self._request(kwargs, stop, messages), listeners.run_id)
        chunks = Chunks(self.model_name, job.request.options, self.attach_rounds)
        with overflow_of_langchain(), closing(job.events(job.load())) as events:
            for event in events:
                listeners.send(event)
                yield from chunks.take(event)

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        listeners = Listeners.of_run(run_manager)
        job = self._job(messages, self._request(kwargs, stop, messages), listeners.run_id)
        stream = self._achunks(job, listeners)
        listeners.streams.append(stream)
        return stream

    async def _achunks(
        self, job: Job, listeners: Listeners
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        chunks = Chunks(self.model_name, job.request.options, self.attach_rounds)
        with overflow_of_langchain():
            async with aclosing(InThread(job.load, job.events)) as events:
                async for event in events:
                    await listeners.asend(event)
                    for chunk in chunks.take(event):
                        yield chunk

    def _job(self, messages: list[BaseMessage], request: Request, run_id: UUID | None) -> Job:
        conversation = engine_messages(messages)
        span = generation_span(self.model_name, request.options, prompt=conversation, run_id=run_id)
        return Job(request, conversation, lambda: self._load_engine(request.ensemble), span)

    def _request(
        self,
        kwargs: Mapping[str, Any],
        stop: Sequence[str] | None = None,
        messages: Sequence[BaseMessage] = (),
    ) -> Request:
        """How a call is made: the model's own options, and those of the call over them.

        Raises:
            InvalidArgumentError: There is no such option, or its value cannot be used.
        """
        own = {name: getattr(self, name, None) for name in CALL_OPTIONS}
        own |= {name: value for name, value in self.model_kwargs.items() if value is not None}
        call = {name: value for name, value in kwargs.items() if name != "stream"}
        if stop is not None:
            call["stop"] = stop
        said = own | {name: value for name, value in call.items() if value is not None}
        asked = messages and isinstance(messages[-1], HumanMessage)
        if self.eager_tools and asked and said["tools"] and said["tool_choice"] is None:
            call["tool_choice"] = "required"
        return read_request(own, call, openai_tool, json_schema)
