"""What is judged as one, and how: the seam between the loop and a rule of merging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from safe_integrations.engine.events import Piece
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.view import View


@dataclass(frozen=True, slots=True)
class Walk:
    """What became of a draft.

    Attributes:
        pieces: The verdicts, in order.
        changed: Whether the last of them writes something else than stands in the draft. The walk
            ends there.
        dropped: Drafted tokens that were thrown away to fit the windows.
        full: Whether what comes next does not fit a window.
        ended: Whether it is sure that no token of any model reaches across the end of what was
            written last.
    """

    pieces: list[Piece]
    changed: bool = False
    dropped: int = 0
    full: bool = False
    ended: bool = False


class Rule(Protocol):
    """A way to judge a draft: by tokens (`token_rule`) or by units (`unit_rule`, `unit_draws`)."""

    @property
    def merge_seconds(self) -> float:
        """Wall time of merging, outside of forward passes."""
        ...

    @property
    def tokenise_seconds(self) -> float:
        """Wall time of tokenising the text for the verifiers."""
        ...

    def pick(self, expected: Distribution) -> int:
        """The drafter's next token, by what it expects at the end of the draft."""
        ...

    def grown(self) -> bool:
        """Told after each drafted token. Whether the rule has changed what was drafted before."""
        ...

    def walk(self, meanwhile: Callable[[], None]) -> Walk:
        """Judges as much of the draft as can be judged.

        Args:
            meanwhile: Called once verifiers that compute elsewhere have been asked.

        Raises:
            ServerError: A server has failed. It is as if the walk had not begun.
        """
        ...

    def leave_out(self, lost: View, weights: Sequence[float]) -> None:
        """Goes on without a verifier, behind what is judged; drops the draft.

        Args:
            lost: The verifier.
            weights: Of the models that are left, drafter first, summing to 1.
        """
        ...
