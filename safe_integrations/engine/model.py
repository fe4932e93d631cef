"""The seam between the engine and a model: one protocol for a member, one for its session.

A backend gives each model as a `Member`. The engine asks one question only, "what comes next
after these tokens?", and never touches a cache: a session keeps whatever it wants to keep. So a
test double needs no cache, and a served engine that caches prefixes fits the same seam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import Tool
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.messages import Message


class Distribution(Protocol):
    """A next-token distribution of one model, over canonical ids (see `TokenTable`).

    Silent ids have probability 0, and aliases are added to their canonical id.
    """

    @property
    def best(self) -> int:
        """The most probable id; of several, the lowest."""
        ...

    def logprob(self, token_id: int) -> float:
        """Natural logarithm of the probability of one id."""
        ...

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The same for several ids."""
        ...

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first; fewer where fewer have any probability."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """Logits of all ids, shape `[tokens.size]`; a model that has none gives `dense`."""
        ...

    def dense(self) -> NDArray[np.float32]:
        """Log-probabilities of all ids, shape `[tokens.size]`."""
        ...


@dataclass(slots=True)
class Work:
    """What a session has computed so far.

    Attributes:
        passes: Forward passes.
        tokens: Tokens forwarded, prompt included.
        reused: Prompt tokens that an earlier session had already forwarded.
        seconds: Wall time inside the model's forward passes.
    """

    passes: int = 0
    tokens: int = 0
    reused: int = 0
    seconds: float = 0.0


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
        """The prompt's token ids, the messages rendered the way this model was trained on."""
        ...

    def start(self, prompt: Sequence[int]) -> Session:
        """Opens a session on a prompt. Computes nothing yet."""
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
