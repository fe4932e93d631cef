"""2) Verify by tokens: the paper's rule, and its baseline that merges at every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import cast

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.baseline import ensemble_always
from safe_integrations.engine.draft import Draft, Step
from safe_integrations.engine.events import Piece
from safe_integrations.engine.judge import Judge, Opinion
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.rule import Walk
from safe_integrations.engine.sampling import DRAFTING, Shaped, pick, random_at
from safe_integrations.engine.view import View


class TokenRule:
    """Judges drafted tokens one by one, where that is safe.

    Args:
        models: The models, drafter first.
        draft: What is judged.
        judge: Gives a token its verdict.
        options: How tokens are picked.
        seed: Where randomness comes from.
        always: Whether to merge at every token, safe or not.

    Attributes:
        tokenise_seconds: Wall time of tokenising the text for the verifiers.
    """

    def __init__(
        self,
        models: Sequence[View],
        draft: Draft,
        judge: Judge,
        options: GenerationConfig,
        seed: int,
        always: bool,
    ) -> None:
        self.tokenise_seconds = 0.0
        self.models, self.verifiers = models, models[1:]
        self.draft = draft
        self.judge = judge
        self._temperature = options.temperature
        self._seed = seed
        self._always = always

    @property
    def merge_seconds(self) -> float:
        """Wall time of merging distributions."""
        return self.judge.seconds

    def pick(self, expected: Distribution) -> int:
        """The drafter's favourite, or what it draws."""
        if self._temperature == 0:
            return expected.best
        random = random_at(self._seed, len(self.draft.text), DRAFTING)
        return pick(cast("Shaped", expected), random)

    def grown(self) -> bool:
        """A token is judged as it was drafted."""
        return False

    def walk(self, meanwhile: Callable[[], None]) -> Walk:
        """The verdicts on the draft, in order."""
        pieces, overflow = self._verify(meanwhile)
        # after a change, what did not fit a window is no longer what comes next
        changed = self.draft.differs(pieces)
        all_judged = len(pieces) == len(self.draft.steps) and not changed
        return Walk(pieces, changed, overflow, full=overflow > 0 and all_judged)

    def leave_out(self, lost: View, weights: Sequence[float]) -> None:
        """Goes on without a verifier, behind what is judged; drops the draft."""
        self.models = [model for model in self.models if model is not lost]
        self.verifiers = self.models[1:]
        self.judge.ask(self.models, weights)
        self.draft.restart(self.verifiers)

    def _verify(self, meanwhile: Callable[[], None]) -> tuple[list[Piece], int]:
        """The verdicts, and how many tokens did not fit a window."""
        if self._always:
            return ensemble_always(self.draft, self.verifiers, self.judge, self._look)
        overflow = self._look()
        steps = self.draft.steps
        if not overflow and not self.draft.is_final:
            horizon = self._settled()  # behind it a verifier may yet tokenise otherwise: wait
            steps = [step for step in steps if step.start < horizon]
        opinions = self._opinions(steps, meanwhile)
        pieces: list[Piece] = []
        for step in steps:
            piece = self.judge.judge(step, opinions.get(step.start))
            pieces.append(self.draft.within_budget(piece))
            if self.draft.differs(pieces):
                break
        return pieces, overflow

    def _look(self) -> int:
        """Has the verifiers tokenise the text; shortens the draft where it overflows a window.

        Returns:
            How many drafted tokens were thrown away.
        """
        started = perf_counter()
        overflow = 0
        while True:
            self.draft.show(self.verifiers, self.models[0])
            fits = all(len(model.segments.ids) <= model.room for model in self.verifiers)
            if fits or not self.draft.steps:
                self.tokenise_seconds += perf_counter() - started
                return overflow
            self.draft.pop()
            overflow += 1

    def _settled(self) -> int:
        """Up to where no verifier's tokens can change any more, whatever is written next."""
        text = self.draft.text
        ends = (model.settled(text, self.models[0]) for model in self.verifiers)
        return min(ends, default=len(text))

    def _opinions(
        self, steps: Sequence[Step], meanwhile: Callable[[], None]
    ) -> dict[int, list[Opinion]]:
        """What the verifiers expect at every safe place among those of some drafted tokens.

        A place is safe where the text up to it ends on a token boundary of every verifier (Eq. 1).
        Verifiers that compute elsewhere are asked at the same time.
        """
        places: dict[int, list[int]] = {}
        for step in steps if self.verifiers else ():
            indices = [model.segments.index_at(step.start) for model in self.verifiers]
            if step.expected is not None and None not in indices:
                places[step.start] = [i for i in indices if i is not None]
        if not places:
            return {}
        asked = [[*column] for column in zip(*places.values(), strict=True)]
        pairs = list(zip(self.verifiers, asked, strict=True))
        for model, column in pairs:
            model.begin(model.segments.ids[: column[-1]], column[0])
        meanwhile()
        found = zip(*(_rows(model, column) for model, column in pairs), strict=True)
        return {start: [*opinions] for start, opinions in zip(places, found, strict=True)}


def _rows(model: View, indices: Sequence[int]) -> list[Opinion]:
    """What a verifier expects at some places of its view, in one forward pass."""
    first, last = indices[0], indices[-1]
    rows = model.score(model.segments.ids[:last], first)
    return [(index, rows[index - first]) for index in indices]
