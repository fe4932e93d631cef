"""Judging by units read word by word: slow, without a draft, without bounds, without lookahead.

Two or more models with different tokens write one answer unit by unit. A unit ends where no token
of any model can hold the bytes on both sides (`Units`). In greedy decoding every model proposes
the unit that it would write next, every model scores every proposal, and the best one is written;
in sampling one of the models is drawn for every unit and writes it alone. Every distribution is
asked for in a new session, and every context is made anew from the units written so far.

It uses the protocol of a member (`render`, `start`, `score`, `close`), a token table's `symbols`,
`encode` and `end_id`, and the symbol END; none of the package's logic. Run it on any members:

    outcome = UnitOracle([drafter, *verifiers], config, options).write("Why is the sky blue?")
    outcome = UnitOracle([drafter, *verifiers], config, options).sample("Why?", noise)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import fsum, inf, log
from os.path import commonprefix
from typing import cast

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import Choice, EnsembleConfig, GenerationConfig
from safe_integrations.engine.model import Dense, Member
from safe_integrations.engine.tokens import END
from safe_integrations.messages import as_messages
from tests.oracle import Judged, Outcome
from tests.places_by_hand import LAST, MAX_UNIT, Unit, Units, Vocabulary, stopped, text_of, whole

SURE = 0.5
"""Units that end exclude each other: one that has more is written, whatever else is proposed."""

Noise = Callable[[str, int, bytes], float]
"""Gumbel noise of a stream, a place in bytes, and the bytes of a symbol."""

Floats = NDArray[np.float64]


@dataclass
class UnitOutcome(Outcome):
    """What the oracle wrote; `judged` are units, and `margin` is a share of the larger number.

    Attributes:
        units: All units that were written.
        conflicts: Cut units that all like best, but which some would have cut elsewhere, and which
            another one beats: there the text depends on who drafts.
    """

    units: list[Unit] = field(default_factory=list)
    conflicts: list[Judged] = field(default_factory=list)


class UnitOracle:
    """Writes one answer after another with the same models and options.

    Args:
        members: The models, drafter first.
        config: How they are merged; `lookahead` is not looked at.
        options: How an answer is made: `max_tokens`, `stop`, the shape of distributions, and a
            `Choice` as the response format. A choice must have room to end.
    """

    def __init__(
        self, members: Sequence[Member], config: EnsembleConfig, options: GenerationConfig
    ) -> None:
        self.config, self.options = config, options
        form = options.response_format
        assert form is None or isinstance(form, Choice), "the oracle knows no other format"
        self.choices = None if form is None else [text.encode() for text in form.options]
        self.members = members
        self.weights = config.weights or [1 / len(members)] * len(members)
        self.vocabularies = [Vocabulary(m) for m in members]
        self.units = Units(self.vocabularies)
        self.everyone = range(len(members))
        self.out = UnitOutcome()

    def write(self, messages: object) -> UnitOutcome:
        """The greedy answer."""
        return self._run(messages, self._greedy)

    def sample(self, messages: object, noise: Noise) -> UnitOutcome:
        """The answer that is drawn with some noise."""
        return self._run(messages, lambda written: self._drawn(written, noise))

    def _run(
        self, messages: object, judge: Callable[[list[Unit]], tuple[Unit, Judged]]
    ) -> UnitOutcome:
        self._begin(messages)
        written: list[Unit] = []
        while not self.out.finish_reason:
            if len(self.ids_of(0, written)) >= self.options.max_tokens:
                self.out.finish_reason = "length"
                break
            unit, judged = judge(written)
            if not self._fits([*written, unit]):
                self.out.finish_reason = "length"
                break
            written.append(unit)
            self.out.judged.append(judged)
            if unit == LAST or stopped(text_of(written), self.options.stop):
                self.out.finish_reason = "stop"
        return self._end(written)

    def _begin(self, messages: object) -> None:
        args = (self.options.tools, self.options.template_args)
        self.prompts = [m.render(as_messages(messages), *args) for m in self.members]
        self.out = UnitOutcome()

    # What a model expects

    def ids_of(self, nth: int, written: Sequence[Unit]) -> list[int]:
        """The context of a model: its own tokens of the units written so far."""
        return [i for unit in written for i in self.units.tokens_of(nth, unit)]

    def expects(self, nth: int, ids: Sequence[int]) -> Floats:
        """The probabilities of a model's ids after some of its tokens, asked in a new session."""
        session = self.members[nth].start(self.prompts[nth])
        try:
            (row,) = session.score(ids, len(ids))
            logits = np.array(cast(Dense, row).dense(), np.float64)
        finally:
            session.close()
        return self._shaped(logits, nth, ids)

    def _shaped(self, logits: Floats, nth: int, ids: Sequence[int]) -> Floats:
        """Constrained, penalised, tempered, truncated, in this order, and normalised."""
        o, symbols = self.options, self.vocabularies[nth].symbols
        logits[[s is None or not self._may_follow(nth, ids, s) for s in symbols]] = -inf
        for i in set(ids) if o.repetition_penalty != 1 else ():
            logits[i] *= o.repetition_penalty if logits[i] < 0 else 1 / o.repetition_penalty
        probs: Floats = np.exp((logits - logits.max()) / (o.temperature or 1))
        if o.temperature == 0:
            return np.array(probs / probs.sum())
        order = np.argsort(-probs, kind="stable")
        if 0 < o.top_k < len(order):
            self._decided(probs[order[o.top_k - 1]], probs[order[o.top_k]])
            probs[order[o.top_k :]] = 0
        probs /= probs.sum()
        if o.top_p < 1:
            before = np.cumsum(probs[order]) - probs[order]
            self._decided(*(2 * (1 + gap) for gap in (0, np.abs(before - o.top_p).min())))
            probs[order[before >= o.top_p]] = 0
        edge = o.min_p * probs.max()
        for p in probs[probs > 0] if edge > 0 else ():
            self._decided(p, edge)
        probs[probs < edge] = 0
        probs /= probs.sum()
        return probs

    def _may_follow(self, nth: int, ids: Sequence[int], symbol: bytes) -> bool:
        if self.choices is None:
            return True
        text = b"".join(self.vocabularies[nth].symbols[i] or b"" for i in ids)
        if symbol == END:
            return text in self.choices
        return any(choice.startswith(text + symbol) for choice in self.choices)

    def _held(self, nth: int, written: Sequence[Unit], probs: Floats) -> Floats:
        """Probabilities of the tokens that may begin a unit; not normalised."""
        if not written or not written[-1].ended:
            return probs
        begins: Floats = np.where(self._free(nth, written[-1]), probs, 0)
        return begins if begins.sum() else probs

    def _free(self, nth: int, unit: Unit) -> NDArray[np.bool_]:
        """Which ids do not join on to a unit, END among them."""
        symbols = self.vocabularies[nth].symbols
        return np.array([s is not None and not self.units.joins(unit.data, s) for s in symbols])

    # Greedy

    def _greedy(self, written: list[Unit]) -> tuple[Unit, Judged]:
        """The sure proposal, else the one with the best score; the verdict on the drafter's."""
        if self.units.tokenwise:
            proposed = self._favourites(written, 1)[0]
            found = set(self._favourites(written, self.config.union_top_k))
        else:
            proposals = [self.proposal(nth, written) for nth in self.everyone]
            proposed, found = proposals[0], set(proposals)
        scores = {unit: self._score(written, unit) for unit in found}
        sure = [unit for unit in scores if unit.ended and scores[unit] > SURE]  # one at most
        order = sorted(scores, key=lambda unit: (-scores[unit], unit.data, not unit.ended))
        best = (sure + order)[0]
        for unit in scores if not self.units.tokenwise else ():
            self._decided(scores[unit], SURE)
        for unit, score in scores.items():
            if unit != best:
                self._decided(scores[best], score)
        verdict = self._verdict(written, proposed, scores[proposed])
        judged = Judged(len(text_of(written)), proposed.data, proposed.data, verdict)
        if proposed == best:
            return best, judged
        if verdict == "unanimous":  # only where it was cut: the others may go on otherwise
            self.out.conflicts.append(judged)
            return proposed, judged
        judged = Judged(judged.start, proposed.data, best.data, "changed")
        return best, judged

    def _favourites(self, written: list[Unit], count: int) -> list[Unit]:
        """Token units: the best symbols of all models, the drafter's first."""
        found = []
        for nth in self.everyone:
            probs = self.expects(nth, self.ids_of(nth, written))
            order = np.argsort(-probs, kind="stable")
            if count < len(order):
                self._decided(probs[order[count - 1]], probs[order[count]])
            found += [self.vocabularies[nth].symbols[i] for i in order[:count] if probs[i] > 0]
        return [Unit(symbol or b"", True) for symbol in found]

    def proposal(self, nth: int, written: Sequence[Unit]) -> Unit:
        """The unit that a model would write, in whatever tokens it likes best."""
        ids, text = self.ids_of(nth, written), b""
        while True:
            probs = self.expects(nth, ids)
            token = self._favourite(probs if text else self._held(nth, written, probs))
            symbol = self.vocabularies[nth].symbols[token] or b""
            text += symbol if symbol != END else b""
            unit = self.units.first(text, symbol == END)
            if unit is not None:
                return unit
            ids = [*ids, token]

    def _favourite(self, probs: Floats) -> int:
        best, second = np.argsort(-probs, kind="stable")[:2]
        self._decided(probs[best], probs[second])
        return int(best)

    def _score(self, written: list[Unit], unit: Unit) -> float:
        """How likely a unit is, by the weighted mean of all models."""
        chances = (self.chance(nth, written, unit) for nth in self.everyone)
        return fsum(w * p for w, p in zip(self.weights, chances, strict=True))

    def chance(self, nth: int, written: Sequence[Unit], unit: Unit) -> float:
        """What a model gives a unit in its own tokens, and that it ends where it does."""
        ids, chance = self.ids_of(nth, written), 1.0
        for token in self.units.tokens_of(nth, unit):
            chance *= float(self.expects(nth, ids)[token])
            ids = [*ids, token]
        if unit.ended and unit != LAST and not self.units.tokenwise:
            chance *= float(self.expects(nth, ids)[self._free(nth, unit)].sum())
        return chance

    def _verdict(self, written: list[Unit], unit: Unit, score: float) -> str:
        if self._is_forced(text_of(written), unit):
            return "forced"
        if len(self.members) == 1:
            return "unverified"
        if all(self._agrees(nth, written, unit) for nth in self.everyone[1:]):
            return "unanimous"
        self._decided(score, self.config.consensus_above)
        if unit.ended and score > self.config.consensus_above:
            return "majority"
        return "confirmed"

    def _agrees(self, nth: int, written: list[Unit], unit: Unit) -> bool:
        """Whether a model's tokens of a unit are its favourites, and it ends there for it, too."""
        ids = self.ids_of(nth, written)
        for count, token in enumerate(self.units.tokens_of(nth, unit)):
            probs = self.expects(nth, ids)
            if token != self._favourite(probs if count else self._held(nth, written, probs)):
                return False
            ids = [*ids, token]
        if unit == LAST or not unit.ended or self.units.tokenwise:
            return True
        return bool(self._free(nth, unit)[self._favourite(self.expects(nth, ids))])

    def _is_forced(self, text: bytes, unit: Unit) -> bool:
        """Whether the choices leave no other unit: they force its text and where it ends."""
        if self.choices is None:
            return False
        ahead = [choice for choice in self.choices if choice.startswith(text)]
        if ahead == [text]:
            return unit == LAST
        forced: bytes = commonprefix(ahead)  # type: ignore[assignment]
        return self.units.first(forced[len(text) :], False) == unit

    # Sampling

    def _drawn(self, written: list[Unit], noise: Noise) -> tuple[Unit, Judged]:
        """The unit of the model that is drawn, and the verdict on what the drafter would write."""
        at = len(text_of(written))
        luck = [
            log(weight) + noise("who", at, member.name.encode()) if weight else -inf
            for weight, member in zip(self.weights, self.members, strict=True)
        ]
        who = self._luckiest(luck)
        unit, proposed = self._draw(who, written, noise), self._draw(0, written, noise)
        verdict = "accepted" if unit.data == proposed.data else "changed"
        if self._is_forced(text_of(written), unit):
            verdict = "forced"
        elif len(self.members) == 1:
            verdict = "unverified"
        return unit, Judged(at, proposed.data, unit.data, verdict)

    def _draw(self, nth: int, written: list[Unit], noise: Noise) -> Unit:
        """The unit that a model writes with some noise."""
        ids, text = self.ids_of(nth, written), text_of(written)
        at, symbols = len(text), self.vocabularies[nth].symbols
        while True:
            probs, stream = self.expects(nth, ids), "start"
            if len(text) == at:
                probs = self._held(nth, written, probs)
            else:
                stream = "in"
            luck = [
                log(p) + noise(stream, len(text), s) if p and s else -inf
                for p, s in zip(probs.tolist(), symbols, strict=True)
            ]
            token = self._luckiest(luck)
            symbol = symbols[token] or b""
            if stream == "start" and (symbol == END or self.units.tokenwise):
                return Unit(symbol, True)
            if stream == "in" and not self.units.joins(text, symbol):
                return Unit(text[at:], True)
            ids, text = [*ids, token], text + symbol
            if len(text) - at >= MAX_UNIT and whole(text) == text:
                return Unit(text[at:], False)

    def _luckiest(self, luck: Sequence[float]) -> int:
        order = np.argsort(-np.array(luck), kind="stable")
        for second in order[1:2]:
            gap = luck[order[0]] - luck[second]
            self._decided(1 + gap, 1)
        return int(order[0])

    # Ends

    def _fits(self, written: Sequence[Unit]) -> bool:
        """Whether a text fits all windows; END takes no room."""
        kept = [unit for unit in written if unit != LAST]
        return all(
            len(self.prompts[nth]) + len(self.ids_of(nth, kept)) <= member.context_window
            for nth, member in enumerate(self.members)
        )

    def _end(self, written: list[Unit]) -> UnitOutcome:
        """The first tokens of what was written, up to a stop string."""
        out = self.out
        ids = self.ids_of(0, written)[: self.options.max_tokens]
        symbols = [self.vocabularies[0].symbols[i] or b"" for i in ids]
        if symbols[-1:] != [END]:
            out.finish_reason = "length"
        text = b"".join(s for s in symbols if s != END)
        out.data, out.units, out.tokens = text, written, len(ids)
        stop = stopped(text, self.options.stop)
        if stop is not None:
            out.finish_reason, out.data = "stop", text[: stop[0]]
            starts = np.cumsum([0, *map(len, symbols)])[: len(symbols)]
            out.tokens = int((starts < stop[1]).sum())
        out.judged = [
            j
            for j in out.judged
            if j.start < len(out.data) or (j.start == len(out.data) and j.written == END)
        ]
        return out

    def _decided(self, one: float, other: float) -> None:
        """Keeps how near a decision was."""
        if one or other:
            gap = abs(one - other) / max(abs(one), abs(other))
            self.out.margin = min(self.out.margin, float(gap))
