"""Scripted models behind a real engine, and a listener for what LlamaIndex reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safe_integrations.llama_index import SafeLLM
from safe_integrations.messages import Message
from safe_integrations.testing import ScriptedMember, follows
from tests import cut_off


class Model(ScriptedMember):
    """A scripted member that remembers what it was asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[list[tuple[str, str]]] = []
        self.messages: Sequence[Message] = ()

    def render(self, messages: Sequence[Message], *args: Any, **kwargs: Any) -> list[int]:
        self.messages = messages
        self.asked.append([(m.role, m.content) for m in messages])
        return super().render(messages, *args, **kwargs)


def writer(text: bytes) -> Model:
    return Model("drafter", [b"he", b"llo", b" "], follows(text))


def hello_world() -> SafeLLM:
    """Writes `hello world`; the `w` is ensembled, and confirmed."""

    def doubtful(written: bytes) -> Mapping[bytes, float]:
        if len(written) == 6:
            return {b"x": 0.35, b"y": 0.35, b"w": 0.3}
        return follows(b"hello world")(written)

    drafter = Model("drafter", [], follows(b"hello world", sure=0.6))
    return SafeLLM(drafter=drafter, verifiers=[Model("verifier", [], doubtful)], attach_rounds=True)


def says(*answers: str) -> SafeLLM:
    """An LLM that gives one answer after the other."""
    member = Model("drafter", [], follows(b""))
    left = list(answers)
    start = member.start

    def next_answer(prompt: Sequence[int], cancel: object = None) -> Any:
        member.script = cut_off.doubtful(follows(left.pop(0).encode()))
        return start(prompt)

    member.start = next_answer  # type: ignore[method-assign]
    return SafeLLM(drafter=member)


class Endless(Model):
    """Never stops writing.

    Args:
        before_pass: Called at the start of every forward pass.
    """

    def __init__(self, before_pass: Callable[[], object] = lambda: None) -> None:
        super().__init__("endless", [], self._next)
        self._before_pass = before_pass

    def _next(self, written: bytes) -> Mapping[bytes, float]:
        self._before_pass()
        return {b"a": 1.0}
