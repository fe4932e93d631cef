"""Algorithm 1 read word by word: slow, without caches, without cycles, without the package's code.

It judges one token after another. For each it starts over from the text written so far: the drafter
writes ahead until the place to be judged cannot change any more, every verifier tokenises the whole
text from its beginning, and every distribution is asked for in a new session. So nothing in here
knows a lookahead; that the engine writes the same whatever its lookahead is what it proves.

It uses the protocol of a member (`render`, `start`, `score`, `close`), a token table's `symbols`,
`encode` and `end_id`, and the symbol END; none of the package's logic. Run it on any members:

    outcome = Oracle([drafter, *verifiers], config, options).write("Why is the sky blue?")
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import fsum, inf, prod
from os.path import commonprefix

import numpy as np

from safe_integrations.config import Choice, EnsembleConfig, GenerationConfig
from safe_integrations.engine.model import Member
from safe_integrations.engine.tokens import END
from safe_integrations.messages import as_messages

BEST = b']}",20134567891-:TZ/.@ntf[{ax'
"""Bytes that lead out of a structure, the best first; then all others by their value."""

Way = tuple[bytes, list[int]]
"""A text that ends a choice, and its tokens, with END."""

RIGHT_CONTEXT = 48
"""Bytes after which a token counts as settled even where no boundary is hard."""


@dataclass(frozen=True)
class Judged:
    """One drafted token and what became of it."""

    start: int
    proposed: bytes
    written: bytes
    verdict: str


@dataclass
class Outcome:
    """What the oracle wrote.

    Attributes:
        data: The answer in bytes, cut at a stop string.
        finish_reason: `stop` or `length`.
        judged: The pieces that start inside the answer.
        tokens: Tokens of the answer, counted by the drafter; END counts.
        margin: The smallest gap that a decision hung on: an engine that computes the same
            probabilities a bit differently may differ where it is tiny.
    """

    data: bytes = b""
    finish_reason: str = ""
    judged: list[Judged] = field(default_factory=list)
    tokens: int = 0
    margin: float = inf

    @property
    def text(self) -> str:
        """The answer as text; half a character at its end is left out."""
        return codecs.getincrementaldecoder("utf-8")("replace").decode(self.data, final=False)


class Vocabulary:
    """A model's tokens: which bytes are a token, and how the tokenizer cuts a text."""

    def __init__(self, member: Member) -> None:
        self.table = member.tokens
        self.symbols = list(member.tokens.symbols())
        self.ids: dict[bytes, list[int]] = {}
        for i, symbol in enumerate(self.symbols):
            if symbol is not None:
                self.ids.setdefault(symbol, []).append(i)
        self.inside = {t[i : i + 2] for t in self.ids if t != END for i in range(len(t) - 1)}

    def same_as(self, other: Vocabulary) -> bool:
        return self.symbols == other.symbols and self.table.end_id == other.table.end_id

    def encode(self, text: bytes) -> list[int]:
        return self.table.encode(text) if text else []

    def settled(self, text: bytes, start: int) -> bool:
        """Whether no later text can change the token at `start` or the boundaries before it."""
        hard = any(self.hard(text, i) for i in range(start + 1, len(text)))
        return hard or len(text) - start > RIGHT_CONTEXT

    def settled_until(self, text: bytes) -> int:
        """How much of a text is tokenised for good: up to a hard boundary, or some bytes short."""
        return max(i for i in range(len(text)) if i == 0 or self.settled(text, i - 1))

    def hard(self, text: bytes, i: int) -> bool:
        """Whether no token can hold the bytes on both sides of a place, nor a character."""
        return text[i - 1 : i + 1] not in self.inside and text[i] & 0xC0 != 0x80


class Expectation:
    """One model's next-token distribution, over symbols."""

    def __init__(self, vocabulary: Vocabulary, logprobs: np.ndarray) -> None:
        self.vocabulary = vocabulary
        self.probs = np.exp(np.asarray(logprobs, np.float64))
        self.order = np.argsort(-self.probs, kind="stable")

    def of(self, symbol: bytes) -> float:
        """Probability of a symbol, whichever ids write it; 0 where it is not one token."""
        return fsum(float(self.probs[i]) for i in self.vocabulary.ids.get(symbol, ()))

    @property
    def best(self) -> int:
        return int(self.order[0])

    @property
    def lead(self) -> float:
        """How far the favourite is ahead."""
        return self.gap(1)

    def gap(self, k: int) -> float:
        """How far the k-th symbol is ahead of the next one."""
        if k >= len(self.order) or self.probs[self.order[k]] == 0:
            return inf
        return float(self.probs[self.order[k - 1]] - self.probs[self.order[k]])

    def top(self, k: int) -> list[bytes]:
        best = (int(i) for i in self.order[:k] if self.probs[i] > 0)
        return [self.vocabulary.symbols[i] or b"" for i in best]

    def unite_score(self, symbol: bytes) -> float:
        """Probability of a symbol, or of the first piece of its own tokenisation."""
        if symbol in self.vocabulary.ids:
            return self.of(symbol)
        first = self.vocabulary.encode(symbol)[0]
        return self.of(self.vocabulary.symbols[first] or b"")


class Oracle:
    """Writes one answer after another with the same models and options.

    Args:
        members: The models, drafter first.
        config: How they are merged; `lookahead` is not looked at.
        options: How an answer is made: `max_tokens`, `stop`, and a `Choice` as the response
            format. Greedy only.
    """

    def __init__(
        self, members: Sequence[Member], config: EnsembleConfig, options: GenerationConfig
    ) -> None:
        assert options.temperature == 0, "the oracle is greedy"
        self.config, self.options = config, options
        form = options.response_format
        assert form is None or isinstance(form, Choice), "the oracle knows no other format"
        self.choices = None if form is None else [text.encode() for text in form.options]
        self.weights = config.weights or [1 / len(members)] * len(members)
        self.members = members[:1] if config.mode == "drafter-only" else members
        self.vocabularies = [Vocabulary(m) for m in self.members]
        self.shares = [v.same_as(self.vocabularies[0]) for v in self.vocabularies]

    def write(self, messages: object) -> Outcome:
        """Answers."""
        conversation = as_messages(messages)
        args = (self.options.tools, self.options.template_args)
        self.prompts = [m.render(conversation, *args) for m in self.members]
        self.rooms = [
            m.context_window - len(p) for m, p in zip(self.members, self.prompts, strict=True)
        ]
        self.budget = min(self.options.max_tokens, self.rooms[0])
        self.out = Outcome()
        self.ids: list[int] = []  # the drafter's tokens of what is written
        while not self.out.finish_reason:
            self._write_one()
        return self._cut_at_stop()

    def expects(self, nth: int, ids: Sequence[int]) -> Expectation:
        """What a model expects after its own tokens, asked in a new session."""
        session = self.members[nth].start(self.prompts[nth])
        try:
            (row,) = session.score(ids, len(ids))
            return Expectation(self.vocabularies[nth], self._masked(nth, ids, row.dense()))
        finally:
            session.close()

    # The response format

    def _masked(self, nth: int, ids: Sequence[int], logprobs: np.ndarray) -> np.ndarray:
        """Without what would leave the choices, normalised."""
        if self.choices is None:
            return logprobs
        symbols = self.vocabularies[nth].symbols
        text = b"".join(symbols[i] or b"" for i in ids)
        probs = np.exp(np.asarray(logprobs, np.float64))
        probs[[s is None or not self._may_follow(text, s) for s in symbols]] = 0
        with np.errstate(divide="ignore"):
            return np.log(probs / probs.sum())

    def _may_follow(self, text: bytes, symbol: bytes) -> bool:
        assert self.choices is not None
        if symbol == END:
            return text in self.choices
        return any(choice.startswith(text + symbol) for choice in self.choices)

    def _forced(self, ids: Sequence[int]) -> list[int]:
        """The drafter's tokens of what must come next, as far as they are settled."""
        if self.choices is None:
            return []
        text = self._text(ids)
        open_choices = [choice for choice in self.choices if choice.startswith(text)]
        if open_choices == [text]:
            return [self.vocabularies[0].table.end_id]
        forced = commonprefix(open_choices)
        while len(forced) > len(text) and not _whole(forced):
            forced = forced[:-1]
        kept = max(len(text), self.vocabularies[0].settled_until(forced)) if forced else 0
        return self.vocabularies[0].encode(forced[len(text) : kept])

    # The budget

    def smallest(self) -> tuple[bytes, int]:
        """The shortest way through the choices that is known, and its tokens, END included."""
        text, ids = self._search(b"")
        return text, len(ids)

    def _way(self, ids: Sequence[int]) -> Way:
        """The way to the end behind some tokens: the first that fits of all that are tried."""
        tried = list(self._ways(ids))
        return next((way for way in tried if self._holds(ids, way)), tried[0])

    def _ways(self, ids: Sequence[int]) -> Iterator[Way]:
        """What is left of the way behind the token before, or all of it if it still ends a choice;
        else the best way from here, and what is left of the best way from the token before."""
        text = self._text(ids)
        assert self.choices is not None
        if ids:
            out, tokens = self._way(ids[:-1])
            last = self._symbol(ids[-1])
            if tokens[0] == ids[-1]:
                yield out[len(last) :], tokens[1:]
            elif out.startswith(last):
                yield self._tokens(out[len(last) :])
            elif text + out in self.choices:
                yield out, tokens
        yield self._search(text)
        if ids:
            out, tokens = self._search(text[: -len(last)])
            if tokens[0] == ids[-1]:
                yield out[len(last) :], tokens[1:]

    def _search(self, text: bytes) -> Way:
        """Byte by byte, the best first."""
        out = b""
        assert self.choices is not None
        while text + out not in self.choices:
            ahead = [c for c in self.choices if c.startswith(text + out)]
            at = len(text + out)
            out += bytes([min((c[at] for c in ahead), key=lambda b: (BEST.find(b) % 256, b))])
        return self._tokens(out)

    def _tokens(self, text: bytes) -> Way:
        vocabulary = self.vocabularies[0]
        return text, [*vocabulary.encode(text), vocabulary.table.end_id]

    def _holds(self, ids: Sequence[int], way: Way) -> bool:
        """Whether there is room for a way: in the budget, and in every verifier's window."""
        text, fits = self._text(ids), [len(ids) + len(way[1]) <= self.budget]
        for nth, vocabulary in list(enumerate(self.vocabularies))[1:]:
            if self.shares[nth]:
                needed = len(ids) + len(way[1]) - 1
            else:  # what may yet be tokenised otherwise may become as many tokens as bytes
                settled, needed, rest = vocabulary.settled_until(text) if text else 0, 0, len(text)
                for token in vocabulary.encode(text):
                    if len(text) - rest + len(vocabulary.symbols[token] or b"") <= settled:
                        rest -= len(vocabulary.symbols[token] or b"")
                        needed += 1
                needed += rest + len(way[0])
            fits.append(needed <= self.rooms[nth])
        return all(fits)

    def _within(self, ids: Sequence[int], new: Sequence[int]) -> bool:
        """Whether the way to the end fits behind new tokens."""
        if self.choices is None or self._symbol(new[0]) == END:
            return True
        return self._holds([*ids, *new], self._way([*ids, *new]))

    def _closing(self, ids: Sequence[int]) -> tuple[int, str]:
        """The first token of the way to the end, and whether the choices forced it anyway."""
        assert self.choices is not None
        text = self._text(ids)
        direct = self._search(text)
        token = (direct if self._holds(ids, direct) else self._way(ids))[1][0]
        ahead = [choice for choice in self.choices if choice.startswith(text)]
        if self._symbol(token) == END:
            return token, "forced" if ahead == [text] else "closed"
        forced = all(choice.startswith(text + self._symbol(token)) for choice in ahead)
        return token, "forced" if forced else "closed"

    # One token

    def _write_one(self) -> None:
        if len(self.ids) >= self.budget or not self._fits(self.ids):
            self.out.finish_reason = "length"
            return
        forced = self._forced(self.ids)
        if forced:
            if not self._within(self.ids, forced[:1]):
                return self._close(forced[0])
            return self._accept(forced[0], "forced")
        if self.config.mode == "every-token":
            expected = self._ask(0, self.ids)
            if not self._within(self.ids, [expected.best]):
                return self._close(expected.best)
            self._ensemble(expected.best, [expected, *self._after(self._text(self.ids))])
            return
        best = self._ask(0, self.ids).best
        if not self._within(self.ids, [best]):
            return self._close(best)
        draft, expected = self._draft()
        if expected is None:
            self.out.finish_reason = "length"
            return
        self._judge(draft, expected)

    def _draft(self) -> tuple[list[int], Expectation | None]:
        """The drafter writes until the first of its tokens is settled, or nothing can follow."""
        draft: list[int] = []
        first: Expectation | None = None
        end_id = self.vocabularies[0].table.end_id
        start = len(self._text(self.ids))
        while len(self.ids) + len(draft) < self.budget:
            written = self.ids + draft
            forced = self._forced(written)[:1]
            if draft and not self._within(written, forced or [self._ask(0, written).best]):
                forced = [self._closing(written)[0]]
            if forced:
                draft.append(forced[0])
                if forced[0] == end_id:
                    break
                continue
            expected = self._ask(0, self.ids + draft)
            if expected.best != end_id and not self._fits([*self.ids, *draft, expected.best]):
                break
            draft.append(expected.best)
            first = first or expected
            text = self._text(self.ids + draft)
            if draft[-1] == end_id or all(
                shared or v.settled(text, start)
                for v, shared in zip(self.vocabularies[1:], self.shares[1:], strict=True)
            ):
                break
        return draft, first

    def _judge(self, draft: list[int], expected: Expectation) -> None:
        """Verifies the first token of a draft; writes it, or what the ensemble says instead."""
        if not self.members[1:]:
            return self._accept(draft[0], "unverified")
        start = len(self._text(self.ids))
        text = self._text(self.ids + draft)
        drafted = [i for i in self.ids + draft if self._symbol(i) != END]
        expectations, own_symbols = [expected], [self._symbol(draft[0])]
        unanimous = True
        for nth, vocabulary in enumerate(self.vocabularies[1:], 1):
            ids = drafted if self.shares[nth] else vocabulary.encode(text)
            before = self._before(vocabulary, ids, start)
            if before is None:
                return self._accept(draft[0], "unsafe")
            own = ids[before] if before < len(ids) else vocabulary.table.end_id
            expectations.append(self._ask(nth, ids[:before]))
            own_symbols.append(vocabulary.symbols[own] or b"")
            favourite = vocabulary.symbols[expectations[-1].best]
            unanimous = unanimous and own_symbols[-1] == favourite
        mean = fsum(
            w * e.of(s) for w, e, s in zip(self.weights, expectations, own_symbols, strict=True)
        )
        if unanimous:
            return self._accept(draft[0], "unanimous")
        self._decided_by(mean - self.config.consensus_above)
        if mean > self.config.consensus_above:
            return self._accept(draft[0], "majority")
        return self._ensemble(draft[0], expectations)

    def _before(self, vocabulary: Vocabulary, ids: list[int], start: int) -> int | None:
        """How many of a model's tokens end by `start`; None where one of them straddles it."""
        at = 0
        for count, token_id in enumerate(ids):
            if at == start:
                return count
            at += len(vocabulary.symbols[token_id] or b"")
        return len(ids) if at == start else None

    def _after(self, text: bytes) -> list[Expectation]:
        """What the verifiers expect after a text."""
        return [
            self._ask(nth, self.ids if self.shares[nth] else v.encode(text))
            for nth, v in enumerate(self.vocabularies)
            if nth
        ]

    # The ensemble

    def _ensemble(self, proposed_id: int, expectations: list[Expectation]) -> None:
        proposed = self._symbol(proposed_id)
        union: set[bytes] = set()
        if self.config.method == "unite":
            for e in expectations:
                union.update(e.top(self.config.union_top_k))
                self._decided_by(e.gap(self.config.union_top_k))
            rows = [{s: e.unite_score(s) for s in union} for e in expectations]
            rows = [{s: p / fsum(row.values()) for s, p in row.items()} for row in rows]
        else:
            for e in expectations:
                union.update(e.vocabulary.ids)
            rows = [{s: e.of(s) for s in union} for e in expectations]
        merged = self._sharpened(rows)
        best = max(merged.values())
        equals = [s for s in merged if merged[s] == best]
        winner = proposed if proposed in equals else min(equals)
        self._decided_by(*(best - p for s, p in merged.items() if s != winner))
        verdict = "confirmed" if winner == proposed else "changed"
        known = self.vocabularies[0].ids.get(winner)
        if winner == proposed:
            ids = [proposed_id]
        elif winner == END or known is None or len(known) > 1:
            vocabulary = self.vocabularies[0]
            ids = [vocabulary.table.end_id] if winner == END else vocabulary.encode(winner)
        else:
            ids = known
        if winner not in (proposed, END) and not self._within(self.ids, ids):
            ids = [self._closing(self.ids)[0]]
            winner, verdict = self._symbol(ids[0]), "closed"
        self._put(ids, proposed, winner, verdict)

    def _sharpened(self, rows: list[dict[bytes, float]]) -> dict[bytes, float]:
        weighted = list(zip(self.weights, rows, strict=True))
        mean = {s: fsum(w * row[s] for w, row in weighted) for s in rows[0]}
        self._decided_by(max(mean.values()) - self.config.sharpen_below)
        if self.config.sharpening == "none" or max(mean.values()) >= self.config.sharpen_below:
            return mean
        if self.config.sharpening == "geometric":
            out = {s: prod(row[s] ** w for w, row in weighted if w > 0) for s in mean}
            return (
                {s: p / fsum(out.values()) for s, p in out.items()} if any(out.values()) else mean
            )
        sharpened = dict(mean)
        for symbol, p in mean.items():
            self._decided_by(p - self.config.prefix_threshold)
            candidate = symbol != END and symbol in self.vocabularies[0].ids
            if candidate and p > self.config.prefix_threshold:
                sharpened[symbol] = p + fsum(
                    mean[t]
                    for t in mean
                    if t != END and len(t) > len(symbol) and t[: len(symbol)] == symbol
                )
        return sharpened

    # Bookkeeping

    def _accept(self, token_id: int, verdict: str) -> None:
        self._put([token_id], self._symbol(token_id), self._symbol(token_id), verdict)

    def _close(self, wanted: int) -> None:
        """Writes the way to the end in the place of a token that does not fit."""
        token, verdict = self._closing(self.ids)
        proposed = wanted if verdict == "closed" else token
        self._put([token], self._symbol(proposed), self._symbol(token), verdict)

    def _put(self, ids: list[int], proposed: bytes, written: bytes, verdict: str) -> None:
        start = len(self._text(self.ids))
        self.out.judged.append(Judged(start, proposed, written, verdict))
        if written == END:
            self.out.finish_reason = "stop"
            return
        self.ids += ids[: self.budget - len(self.ids)]
        if self._stop() is not None:
            self.out.finish_reason = "stop"

    def _stop(self) -> tuple[int, int] | None:
        """Start and end of the stop string that is completed first, the longest of equals."""
        text = self._text(self.ids)
        stops = sorted((s.encode() for s in self.options.stop), key=len, reverse=True)
        for end in range(len(text) + 1):
            for stop in stops:
                if text[:end].endswith(stop):
                    return end - len(stop), end
        return None

    def _cut_at_stop(self) -> Outcome:
        out, text, stop = self.out, self._text(self.ids), self._stop()
        out.data = text if stop is None else text[: stop[0]]
        seen = len(text) if stop is None else stop[1]
        out.tokens = sum(len(self._text(self.ids[:i])) < seen for i in range(len(self.ids)))
        if stop is None and out.finish_reason == "stop":
            out.tokens += 1
        out.judged = [
            j
            for j in out.judged
            if j.start < len(out.data) or (j.start == len(out.data) and j.written == END)
        ]
        if any(j.verdict == "closed" for j in out.judged):
            out.finish_reason = "length"
        return out

    def _ask(self, nth: int, ids: Sequence[int]) -> Expectation:
        expected = self.expects(nth, ids)
        self._decided_by(expected.lead)
        return expected

    def _decided_by(self, *gaps: float) -> None:
        self.out.margin = min([self.out.margin, *map(abs, gaps)])

    def _fits(self, ids: Sequence[int]) -> bool:
        """Whether a text fits the window of every verifier."""
        text = self._text(ids)
        return all(
            len(ids if self.shares[nth] else v.encode(text)) <= self.rooms[nth]
            for nth, v in enumerate(self.vocabularies)
            if nth
        )

    def _symbol(self, token_id: int) -> bytes:
        return self.vocabularies[0].symbols[token_id] or b""

    def _text(self, ids: Sequence[int]) -> bytes:
        return b"".join(s for i in ids if (s := self._symbol(i)) != END)


def _whole(text: bytes) -> bool:
    """Whether no character is cut at the end."""
    try:
        text.decode()
        return True
    except UnicodeDecodeError:
        return False
