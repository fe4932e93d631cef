"""The seam between the engine and a model: one protocol for a member, one for its session.

A backend gives each model as a `Member`. The engine asks one question only, "what comes next
after these tokens?", and never touches a cache: a session keeps whatever it wants to keep. So a
test double needs no cache, and a served engine that caches prefixes fits the same seam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import Tool
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.messages import Message


def never() -> bool:
    """The answer of a caller that lets every forward pass end."""
    return False


class Distribution(Protocol):
    """A next-token distribution of one model, over canonical ids (see `TokenTable`).

    Silent ids have probability 0, and aliases are added to their canonical id. Every backend can
    answer this much; a served model that tells only its best ids does so with `TopDistribution`.
    """

    @property
    def best(self) -> int:
        """The most probable id; of several, the lowest."""
        ...

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first; fewer where fewer have any probability."""
        ...

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of some ids. May ask the model again."""
        ...

    def best_among(self, flags: NDArray[np.float32]) -> int | None:
        """The most probable of the ids with flag 1, not 0; None where none has any probability.

        Args:
            flags: Shape `[tokens.size]`.
        """
        ...

    def mass(self, flags: NDArray[np.float32]) -> float:
        """Probability of all ids with flag 1 together; their share of those told where few are."""
        ...


class Dense(Distribution, Protocol):
    """A distribution whose whole vocabulary is in memory: what GaC and penalties need."""

    def logits(self) -> NDArray[np.float32]:
        """Logits of all ids, shape `[tokens.size]`, not to be written to; -inf where silent."""
        ...

    def dense(self) -> NDArray[np.float32]:
        """Log-probabilities of all ids, shape `[tokens.size]`."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a member cannot do. An option that needs more is refused by name, before any work.

    Attributes:
        top: Most ids that a distribution brings along; None for `Dense` ones, which bring all.
        ids: Most other ids whose probability one question may ask for; None for any number.
        remote: Whether another machine or program computes: its sessions are `RemoteSession`s.
    """

    top: int | None = None
    ids: int | None = None
    remote: bool = False


@dataclass(slots=True)
class Work:
    """What a session has computed so far.

    Attributes:
        passes: Forward passes.
        tokens: Tokens forwarded, prompt included.
        reused: Prompt tokens that an earlier session had already forwarded.
        seconds: Wall time inside the model's forward passes. Of one that sessions share, their own
            parts; of one that is computed elsewhere, how long it was waited for.
        row_seconds: What one more token in a pass would take, as it was measured lately.
        requests: Requests to a server.
        received: Bytes of its answers.
    """

    passes: int = 0
    tokens: int = 0
    reused: int = 0
    seconds: float = 0.0
    row_seconds: float = 0.0
    requests: int = 0
    received: int = 0


class Session(Protocol):
    """One model at work on one prompt."""

    @property
    def work(self) -> Work:
        """What has been computed so far; it grows with every call of `score`."""
        ...

    def score(self, ids: Sequence[int], since: int) -> Sequence[Distribution]:
        """What the model expects after each of several prefixes, in one forward pass.

        Args:
            ids: Generated token ids, the prompt not included.
            since: Length of the first prefix to answer for.

        Returns:
            `len(ids) - since + 1` distributions: after `ids[:since]`, ..., after `ids`.
        """
        ...

    def close(self) -> None:
        """Gives the session back. It must not be used afterwards."""
        ...


T = TypeVar("T", covariant=True)


class Pending(Protocol[T]):
    """An answer that was asked for and may not be there yet."""

    def done(self) -> bool:
        """Whether `result` would not wait."""
        ...

    def result(self) -> T:
        """Waits for it."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more: it need not be computed."""
        ...


class RemoteSession(Session, Protocol):
    """A session of a model that computes elsewhere. What it is asked for, it is waited for later.

    So several models are at work at the same time, and the drafter goes on meanwhile.
    """

    def begin(self, ids: Sequence[int], since: int) -> Pending[Sequence[Distribution]]:
        """Asks for what `score` returns."""
        ...

    def draft(
        self, ids: Sequence[int], count: int
    ) -> Pending[tuple[Sequence[int], Sequence[Distribution]]]:
        """Asks the model to write on by itself, greedily: several tokens in one question.

        Args:
            ids: Generated token ids, the prompt not included.
            count: Tokens it may write at most.

        Returns:
            Token ids, an end included, and what it expected in front of each of them; at least one
            of these, also where it writes no token that has a meaning here.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How a member reasons in front of an answer.

    Attributes:
        prompt: Token ids up to the first byte of the reasoning.
        end: The text with which it ends its reasoning.
        closing: Token ids between the reasoning and the first byte of the answer.
        own: Whether its chat template knows reasoning. If not, that of others is shown to it in
            plain tags.
    """

    prompt: Sequence[int]
    end: str
    closing: Sequence[int]
    own: bool


class Member(Protocol):
    """One model of the ensemble."""

    @property
    def name(self) -> str:
        """How errors, events and statistics call this model."""
        ...

    @property
    def tokens(self) -> TokenTable:
        """Its tokens as bytes."""
        ...

    @property
    def context_window(self) -> int:
        """Tokens it can hold, prompt and answer together."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """The prompt's token ids, the messages rendered the way this model was trained on.

        It ends where the next byte is the first of the answer.
        """
        ...

    def reason(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> Reasoning:
        """The same for an answer in front of which the models reason."""
        ...

    @property
    def limits(self) -> Limits:
        """What it cannot do."""
        ...

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> Session:
        """Opens a session on a prompt. Computes nothing yet.

        Args:
            prompt: Token ids.
            cancel: Asked between the parts of a long forward pass whether to stop; `score` then
                raises `GenerationCancelled`.
        """
        ...


class Cursor(Protocol):
    """One model's way through a grammar that the answer must follow.

    Every question names all ids generated so far; the cursor goes back and forth by itself.
    """

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which ids may follow, one flag per id; None where every id may, END included."""
        ...

    def forced(self, ids: Sequence[int]) -> bytes:
        """The text that must come next: whole characters, empty where there is a choice."""
        ...

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether nothing but END may follow."""
        ...

    def closing(self, text: bytes) -> bytes | None:
        """A short text that ends the grammar behind a text; None where none is known."""
        ...

    def ends(self, text: bytes, way: bytes) -> bool:
        """Whether a text ends the grammar behind another text; cheap."""
        ...

    def cut(self, text: bytes, spans: Sequence[tuple[int, int]]) -> list[str]:
        """Which values of a whole answer are not what the models wrote.

        Args:
            text: The answer.
            spans: From where to where the budget wrote, in bytes.

        Returns:
            JSON pointers, in order; none where the answer is no JSON.
        """
        ...
