"""Scripted models that answer a conversation: the engine and LangChain are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler

from safe_integrations.config import Tool
from safe_integrations.langchain import ChatSafe
from safe_integrations.messages import Message
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows
from tests.cut_off import doubtful

TEXT = "Paris is the capital 🗼 of France."
OTHER = "Paris is the capitol 🗼 of France."
WORDS = [b"Par", b"is", b" the", b" capi", b"tal", b" Fr"]


class Chatty(ScriptedMember):
    """Answers what `reply` says to a conversation; keeps what it was given.

    Args:
        name: Of the model.
        reply: The conversation -> the answer.
        before_pass: Called at the start of every forward pass.
        sure: Probability of each byte of the answer.
        words: Its tokens, besides all bytes.
        doubts: Whether it finds every byte possible, as real models do.
    """

    def __init__(
        self,
        name: str = "drafter",
        reply: Callable[[Sequence[Message]], str] | str = TEXT,
        *,
        before_pass: Callable[[], object] = lambda: None,
        sure: float = 0.9,
        context_window: int = 4096,
        words: Sequence[bytes] = WORDS,
        doubts: bool = False,
    ) -> None:
        super().__init__(name, words, follows(b""), context_window=context_window)
        self.reply = (lambda _: reply) if isinstance(reply, str) else reply
        self.before_pass = before_pass
        self.sure = sure
        self.doubts = doubts
        self.conversations: list[Sequence[Message]] = []
        self.tools: list[Sequence[Tool]] = []
        self.template_args: list[Mapping[str, Any]] = []
        self.passes = 0

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        self.conversations.append(messages)
        self.tools.append(tools)
        self.template_args.append(template_args)
        # the first id says which conversation it is, so that sessions of several threads differ;
        # the others are those of no token, so that nothing of the answer is found in the prompt
        return [len(self.conversations) - 1, *range(-len(messages), 0)]

    def start(self, prompt: Sequence[int], cancel: object = None) -> ScriptedSession:
        answer = self.reply(self.conversations[prompt[0]]).encode()
        script = follows(answer, sure=self.sure)
        one = ScriptedMember(self.name, [], doubtful(script) if self.doubts else script)
        one.tokens = self.tokens
        session = Counting(one, self)
        self.sessions.append(session)
        return session


class Counting(ScriptedSession):
    """A session that counts its passes."""

    def __init__(self, member: ScriptedMember, chatty: Chatty) -> None:
        super().__init__(member)
        self._chatty = chatty

    def score(self, ids: Sequence[int], since: int) -> Any:
        self._chatty.passes += 1
        self._chatty.before_pass()
        return super().score(ids, since)


def chat(
    reply: Any = TEXT,
    other: Any = OTHER,
    *,
    before_pass: Callable[[], object] = lambda: None,
    **options: Any,
) -> ChatSafe:
    """A drafter and a verifier that disagrees a little; messages carry the rounds."""
    drafter = Chatty("drafter", reply, before_pass=before_pass, sure=0.8)
    verifier = Chatty("verifier", other, sure=0.7)
    return ChatSafe(drafter=drafter, verifiers=[verifier], **{"attach_rounds": True, **options})


def total(chunks: Any) -> Any:
    """Chunks added up."""
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


class Recorder(BaseCallbackHandler):
    """Keeps run ids and custom events."""

    def __init__(self) -> None:
        self.starts: list[Any] = []
        self.ends: list[Any] = []
        self.errors: list[Any] = []
        self.custom: list[tuple[str, Any, Any]] = []

    def on_chat_model_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.starts.append(run_id)

    def on_llm_end(self, response: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.ends.append(response)

    def on_llm_error(self, error: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.errors.append(error)

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.custom.append((name, data, run_id))


class AsyncRecorder(AsyncCallbackHandler):
    """The same, for an event loop."""

    def __init__(self) -> None:
        self.starts: list[Any] = []
        self.custom: list[tuple[str, Any, Any]] = []

    async def on_chat_model_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.starts.append(run_id)

    async def on_custom_event(self, name: str, data: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.custom.append((name, data, run_id))
