"""Members without weights, for tests of pipelines: the engine is real, the models are scripted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from safe_integrations.config import Tool
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.model import Limits, Reasoning, Work, never
from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.messages import Message

Script = Callable[[bytes], Mapping[bytes, float]]
"""The text generated so far -> the probability of every next symbol that has any."""


class ScriptedMember:
    """A model that follows a script and tokenises by longest match.

    Args:
        name: How errors and statistics call it.
        vocabulary: Its tokens. Every text it meets must be a sequence of them; all single bytes
            are added where `complete` is set.
        script: What it expects after a text.
        complete: Whether to add every single byte to the vocabulary.
        context_window: Tokens it can hold.
    """

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[bytes],
        script: Script,
        *,
        complete: bool = True,
        context_window: int = 4096,
    ) -> None:
        symbols = list(dict.fromkeys(vocabulary))
        if complete:
            symbols += [bytes([b]) for b in range(256) if bytes([b]) not in symbols]
        self.name = name
        self.context_window = context_window
        self.tokens = TokenTable([*symbols, b""], {len(symbols)}, self._encode)
        self.script = script
        self.sessions: list[ScriptedSession] = []
        self.limits = Limits()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """One token per message."""
        return [0] * len(messages)

    def reason(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> Reasoning:
        """The prompt of `render`, and `<think>`; `</think>` ends it."""
        prompt = [*self.render(messages, tools, template_args), *self.tokens.encode(b"<think>\n")]
        return Reasoning(prompt, "</think>", self.tokens.encode(b"\n</think>\n\n"), own=True)

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> ScriptedSession:
        """Opens a session; it is kept in `sessions` for tests to look at."""
        self.sessions.append(ScriptedSession(self))
        return self.sessions[-1]

    def _encode(self, text: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            lengths = range(min(32, len(text) - at), 0, -1)
            found = (self.tokens.id_of(text[at : at + n]) for n in lengths)
            token_id = next(i for i in found if i is not None)
            ids.append(token_id)
            at += len(self.tokens.symbol(token_id))
        return ids


class ScriptedSession:
    """One scripted model at work. It asks its script afresh every time: there is no cache.

    Attributes:
        work: Counts calls as forward passes, and the distributions asked for as tokens.
        closed: Whether the engine has given it back.
    """

    def __init__(self, member: ScriptedMember) -> None:
        self.work = Work()
        self.closed = False
        self._member = member

    def score(self, ids: Sequence[int], since: int) -> Sequence[DenseDistribution]:
        """What the script expects after `ids[:since]`, ..., after `ids`."""
        tokens = self._member.tokens
        self.work.passes += 1
        self.work.tokens += len(ids) - since + 1
        text = b"".join(tokens.symbol(i) for i in ids[:since])
        rows = [self._row(text)]
        for token_id in ids[since:]:
            text += tokens.symbol(token_id)
            rows.append(self._row(text))
        return rows

    def close(self) -> None:
        """Marks the session as given back."""
        self.closed = True

    def _row(self, text: bytes) -> DenseDistribution:
        tokens = self._member.tokens
        logprobs = np.full(tokens.size, -np.inf, np.float32)
        for symbol, probability in self._member.script(text).items():
            token_id = tokens.id_of(symbol)
            if token_id is None:
                raise ValueError(f"{symbol!r} is not a token of {self._member.name}")
            if probability > 0:
                logprobs[token_id] = np.log(probability)
        return DenseDistribution(logprobs)


def follows(text: bytes, *, sure: float = 0.9) -> Script:
    """A script that writes a given text byte by byte, then END, with some probability each."""

    def script(written: bytes) -> Mapping[bytes, float]:
        next_byte = text[len(written) : len(written) + 1] or END
        return {next_byte: sure, b"?": 1 - sure}

    return script
