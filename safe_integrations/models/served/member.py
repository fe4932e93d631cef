"""A model that a server computes, as a member of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import exp, inf, log1p
from time import perf_counter
from typing import Final, Generic, TypeVar

from safe_integrations.calls.form import Form
from safe_integrations.engine.distribution import TopDistribution
from safe_integrations.engine.model import Limits, Work, never
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import ServerError
from safe_integrations.models.fork import check_process
from safe_integrations.models.member import BaseMember
from safe_integrations.models.passes import Price
from safe_integrations.models.rendering import Render
from safe_integrations.models.served.client import Asked, Client
from safe_integrations.models.served.dialect import UNREADABLE, Dialect, Prefix, Request, Row, Told

T = TypeVar("T")
Rows = Sequence[TopDistribution]


class TopFold:
    """Maps what a server tells of a row to canonical ids.

    Silent ids are left out, and what they have is taken off the whole, as far as it is told.
    Aliases are added to theirs, as far as they are told: of one that is not, the id it belongs to
    has at most the last of what is told too little.
    """

    def __init__(self, tokens: TokenTable) -> None:
        self._canonical = dict(tokens.aliases)
        self._silent = frozenset(tokens.silent)
        self._size = tokens.size
        self._aliases: dict[int, list[int]] = {}
        for alias, canonical in tokens.aliases:
            self._aliases.setdefault(canonical, []).append(alias)

    def __call__(self, row: Row, gone: float | None = None) -> tuple[dict[int, float], float]:
        """Log-probabilities by canonical id, and what silent ids have.

        `gone` is that, where a longer row has told it.
        """
        known: dict[int, float] = {}
        silent = 0.0
        for token_id, value in zip(row.ids, row.logprobs, strict=True):
            if token_id >= self._size or token_id in self._silent:
                silent += exp(value)
                continue
            own = self._canonical.get(token_id, token_id)
            known[own] = value if own not in known else _added(known[own], value)
        gone = silent if gone is None else gone
        if gone > 0:
            rest = log1p(-min(gone, 1 - 1e-9))
            known = {token_id: value - rest for token_id, value in known.items()}
        return known, gone

    def spelled(self, token_ids: Sequence[int]) -> list[int]:
        """All ids that have to be asked for to know these."""
        return [*token_ids, *(a for i in token_ids for a in self._aliases.get(i, ()))]


def _added(one: float, other: float) -> float:
    """The logarithm of a sum of two probabilities."""
    high, low = max(one, other), min(one, other)
    return high if low == -inf else high + log1p(exp(low - high))


class ServedMember(BaseMember[TopFold]):
    """One model on a server, with its tokenizer here.

    Args:
        client: The server.
        dialect: How it is asked.
        called: How it calls the model in its answers; None where it does not.
        top: Ids per row that it tells.
        tokens: The model's tokens as bytes.
        render: Turns messages into prompt ids.
        name: How errors and statistics call it.
        context_window: Tokens it can hold.
        teaches: The form of a call that its chat template teaches; None where it is none we know.
        in_form: `tokens` and `render` where calls have a form.
    """

    def __init__(
        self,
        client: Client,
        dialect: Dialect,
        called: str | None,
        top: int,
        tokens: TokenTable,
        render: Render,
        *,
        name: str,
        context_window: int,
        teaches: Form | None = None,
        in_form: Callable[[Form], tuple[TokenTable, Render]] | None = None,
    ) -> None:
        super().__init__(
            tokens,
            render,
            TopFold,
            name=name,
            context_window=context_window,
            teaches=teaches,
            in_form=in_form,
            limits=Limits(top=top, ids=dialect.most_ids, remote=True),
        )
        self.client: Final = client
        self.dialect: Final = dialect
        self.called: Final = called
        self.price: Final = Price()

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> ServedSession:
        """Opens a session on a prompt.

        `cancel` is asked again and again while the server is waited for; where it says yes the
        request's connection is closed, and `score` raises `GenerationCancelled`.
        """
        check_process(self.name)
        return ServedSession(self, prompt, cancel)


class ServedSession:
    """A model at work on one prompt. It keeps nothing: the server has a cache of prefixes."""

    def __init__(
        self, member: ServedMember, prompt: Sequence[int], cancel: Callable[[], bool]
    ) -> None:
        self.work = Work()
        self._member = member
        self._fold = member.fold
        self._prompt = list(prompt)
        self._prefix = Prefix(prompt)
        self._cancel = cancel
        self._open: set[Asked] = set()
        self._closed = False

    def score(self, ids: Sequence[int], since: int) -> Rows:
        """What the model expects after `ids[:since]`, ..., after `ids`; see `Session`."""
        return self.begin(ids, since).result()

    def begin(self, ids: Sequence[int], since: int) -> _Pending[Rows]:
        """Asks for the same, and does not wait."""
        request = self._member.dialect.rows(self._prefix, ids, since)
        places = [list(ids[:count]) for count in range(since, len(ids) + 1)]

        def rows(told: Told, seconds: float) -> Rows:
            self._check(len(told.rows) == len(places), f"{len(told.rows)} rows, not {len(places)}")
            self._member.price.learn(len(places), seconds)
            self.work.row_seconds = self._member.price.row
            self.work.passes += 1
            return [self._row(*pair) for pair in zip(told.rows, places, strict=True)]

        return self._begin(request, rows)

    def draft(self, ids: Sequence[int], count: int) -> _Pending[tuple[Sequence[int], Rows]]:
        """Asks for several greedy tokens, and does not wait; see `RemoteSession`."""
        room = self._member.context_window - len(self._prompt) - len(ids)
        count = max(1, min(count, room))
        request = self._member.dialect.draft(self._prefix, ids, count)
        behind = list(ids)

        def drafted(told: Told, seconds: float) -> tuple[Sequence[int], Rows]:
            rows: list[TopDistribution] = []
            self._check(len(told.rows) <= count, f"{len(told.rows)} rows, not {count}")
            self._check(len(told.rows) <= len(told.ids), f"{len(told.ids)} ids in a draft")
            if not told.rows:
                return (), self.score(behind, len(behind))
            for nth, row in enumerate(told.rows):
                rows.append(self._row(row, [*behind, *told.ids[:nth]]))
            self.work.passes += len(rows)
            return told.ids[: len(rows)], rows

        return self._begin(request, drafted)

    def close(self) -> None:
        """Has the server stop what nobody waits for any more."""
        if not self._closed:
            self._closed = True
            for asked in self._open:
                asked.cancel()

    def drop(self, asked: Asked) -> None:
        """Nobody waits for an answer any more."""
        self._open.discard(asked)
        asked.cancel()

    def _begin(self, request: Request, meaning: Callable[[Told, float], T]) -> _Pending[T]:
        assert not self._closed, "the session is closed"
        asked = self._member.client.begin(request.url, request.body, self._cancel)
        self._open.add(asked)
        self.work.requests += 1
        return _Pending(self, asked, request, meaning)

    def receive(self, asked: Asked, request: Request) -> tuple[Told, float]:
        """Waits for an answer; what it means, and how long the server took."""
        started = perf_counter()
        try:
            reply = asked.result()
        finally:
            self._open.discard(asked)
            self.work.seconds += perf_counter() - started
        try:
            told = request.read(reply.data)
        except UNREADABLE as error:
            kind = self._member.dialect.kind
            raise self._odd(f"its answer is not one of {kind} ({error!r})") from error
        called = self._member.called
        self._check(told.model == called, f"it serves {told.model} now, and served {called}")
        for row in told.rows:
            likely = all(value <= 1e-3 for value in row.logprobs)  # not where one is NaN
            self._check(likely, "it tells no log-probabilities")
            self._check(min(row.ids, default=0) >= 0, "it tells ids below 0")
        if self.work.tokens == 0:
            self.work.reused = min(told.cached, len(self._prompt))
        self.work.tokens += told.computed
        self.work.received += reply.size
        return told, reply.seconds

    def _row(self, row: Row, ids: list[int]) -> TopDistribution:
        known, gone = self._fold(row)
        self._check(max(known.values(), default=-inf) > -inf, "it tells no token that is text")
        return TopDistribution(
            list(known),
            list(known.values()),
            partial(self._ask, ids, gone),
            partial(self._among, ids, gone),
        )

    def _ask(self, ids: list[int], gone: float, wanted: Sequence[int]) -> list[float]:
        """The log-probabilities of some ids at one place."""
        spelled = self._fold.spelled(wanted)
        told: dict[int, float] = {}
        requests = self._member.dialect.ask(self._prefix, ids, spelled, told)
        known = self._collect(requests, told, gone, spelled, all)
        missing = [i for i in wanted if i not in known]
        self._check(not missing, f"it does not tell the probability of the ids {missing}")
        return [known[i] for i in wanted]

    def _among(self, ids: list[int], gone: float, allowed: Sequence[int]) -> dict[int, float]:
        """The log-probability of the best of some ids at one place, and perhaps of others."""
        spelled = self._fold.spelled(allowed)
        requests = self._member.dialect.among(self._prefix, ids, spelled)
        known = self._collect(requests, {}, gone, spelled, any)
        inside = {i: known[i] for i in allowed if i in known}
        self._check(bool(inside), f"it tells the probability of none of {len(allowed)} ids")
        several = [i for i in inside if self._fold.spelled([i]) != [i]]  # told in part, perhaps
        if several:
            inside |= zip(several, self._ask(ids, gone, several), strict=True)
        return inside

    def _collect(
        self,
        requests: Iterator[Request],
        told: dict[int, float],
        gone: float,
        wanted: Sequence[int],
        enough: Callable[[Iterator[bool]], bool],
    ) -> dict[int, float]:
        for request in requests:
            rows, _ = self._begin(request, lambda told, _: (told.rows, None)).result()
            for row in rows:
                told |= zip(row.ids, row.logprobs, strict=True)
            if enough(i in told for i in wanted):
                break
        known, _ = self._fold(Row(list(told), list(told.values())), gone)
        return known

    def _check(self, holds: bool, problem: str) -> None:
        if not holds:
            raise self._odd(problem)

    def _odd(self, problem: str) -> ServerError:
        client = self._member.client
        remedy = "load the models again, or see docs/serving.md for what a server needs"
        return client.error(f"{client.url}: {problem}", remedy)


class _Pending(Generic[T]):
    """Something that a session was asked for."""

    def __init__(
        self,
        session: ServedSession,
        asked: Asked,
        request: Request,
        meaning: Callable[[Told, float], T],
    ) -> None:
        self._session = session
        self._asked = asked
        self._request = request
        self._meaning = meaning

    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self._asked.done()

    def result(self) -> T:
        """Waits for the answer."""
        return self._meaning(*self._session.receive(self._asked, self._request))

    def cancel(self) -> None:
        """Closes the request's connection."""
        self._session.drop(self._asked)
