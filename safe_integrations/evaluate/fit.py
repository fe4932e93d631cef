"""How two tokenizers fit: at how many places one model can check what another one drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from safe_integrations.engine.segments import Segmentation
from safe_integrations.engine.tokens import TokenTable

SAMPLES: Final = {
    "English": (
        "The quick brown fox doesn't jump over the lazy dog; it walks around it, quietly. "
        "Photosynthesis converts carbon dioxide and water into glucose, releasing oxygen."
    ),
    "code": (
        "def mean(values: list[float]) -> float:\n"
        '    """Average of the values."""\n'
        "    if not values:\n        raise ValueError('no values')\n"
        "    return sum(values) / len(values)  # O(n)\n"
    ),
    "numbers": "1234 + 5678 = 6912; 3.14159265 * 2.5e-3 = 0.00785; 2026-11-23, 1,000,000 and 42%.",
    "Chinese": "人工智能模型可以一起写出一个答案。每个模型都有自己的分词器,所以边界并不总是相同。",
    "emoji": "Great job 👍🏽! 🎉🎉 See you at the 🏖️ with 👨‍👩‍👧‍👦 tomorrow 😀.",
}
"""Text of several kinds, to tokenise with both models of a pair."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How two tokenizers cut the same text.

    Attributes:
        boundaries: Token boundaries of the drafter.
        common: Of these, boundaries of the verifier too: places where the draft can be checked.
        length: Length of the text, in bytes.
    """

    boundaries: int
    common: int
    length: int

    @property
    def share(self) -> float:
        """Share of the drafter's boundaries that the verifier has too."""
        return self.common / self.boundaries if self.boundaries else 1.0

    @property
    def bytes_between(self) -> float:
        """Mean number of bytes from one common boundary to the next."""
        return self.length / self.common if self.common else float(self.length)


def fits(drafter: TokenTable, verifier: TokenTable) -> dict[str, Fit]:
    """How two tokenizers fit each other on each of the sample texts, and on `all` of them."""
    found = {kind: _fit(drafter, verifier, text.encode()) for kind, text in SAMPLES.items()}
    return found | {"all": total(list(found.values()))}


def total(parts: Sequence[Fit]) -> Fit:
    """Several texts together."""
    return Fit(
        sum(fit.boundaries for fit in parts),
        sum(fit.common for fit in parts),
        sum(fit.length for fit in parts),
    )


def _fit(drafter: TokenTable, verifier: TokenTable, text: bytes) -> Fit:
    ours, theirs = _boundaries(drafter, text), _boundaries(verifier, text)
    return Fit(len(ours), len(ours & theirs), len(text))


def _boundaries(tokens: TokenTable, text: bytes) -> set[int]:
    view = Segmentation(tokens)
    view.update(text, 0)
    return set(view.ends)
