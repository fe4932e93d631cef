"""How a kind of server is asked: requests as data, and what its answers mean.

A verifier is asked for rows behind several prefixes in one request: those of the text in front of
each drafted token, and behind the last. The prefixes differ by a token each, and the server's
prefix cache makes them about as cheap as one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

NEUTRAL: Final = {
    "temperature": 0,
    "top_p": 1,
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""All that a model's own generation config may set, as vLLM and SGLang call it: it would change
drafts."""

UNREADABLE: Final = (LookupError, TypeError, AttributeError, ArithmeticError, ValueError)
"""What reading an answer raises that is not one of this kind of server."""


class Row(NamedTuple):
    """What a model expects at one place, as far as the server tells it.

    Attributes:
        ids: Token ids, the most probable ones, and some others that were asked for.
        logprobs: Their log-probabilities over the whole vocabulary.
    """

    ids: Sequence[int]
    logprobs: Sequence[float]


class Told(NamedTuple):
    """What an answer means.

    Attributes:
        rows: What the model expects, place by place.
        ids: What it has written, an end included.
        cached: Tokens of the prefixes that it had not to compute again.
        computed: Those that it had to.
        model: How the server calls the model; None where it does not say.
    """

    rows: Sequence[Row]
    ids: Sequence[int] = ()
    cached: int = 0
    computed: int = 0
    model: str | None = None


class Request(NamedTuple):
    """One request.

    Attributes:
        url: Where to.
        body: The JSON document.
        read: What the answer means. It raises one of `UNREADABLE` where the answer is not one of
            this kind of server.
    """

    url: str
    body: str
    read: Callable[[Any], Told]


def spelling(url: str, body: Mapping[str, Any]) -> Request:
    """A request for the ids of a text."""
    return Request(url, json.dumps(body), lambda data: Told((), [int(i) for i in data["tokens"]]))


def body_of(fields: Mapping[str, Any], name: str, prompt: str) -> str:
    """Fields as a JSON document, and in it a prompt that is JSON already (`Prefix`)."""
    return f'{{"{name}":{prompt},{json.dumps(fields)[1:]}'


class Prefix:
    """A prompt, as it is written into request after request.

    Args:
        prompt: Token ids.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self.length = len(prompt)
        self._text = ",".join(map(str, prompt))

    def text(self, ids: Sequence[int]) -> str:
        """The prompt and what is generated behind it, as JSON."""
        return f"[{self._text}{''.join(f',{i}' for i in ids)}]"

    def texts(self, ids: Sequence[int], since: int) -> str:
        """The prompt and `ids[:since]`, ..., and `ids`, as JSON."""
        places = range(since, len(ids) + 1)
        return f"[{','.join(self.text(ids[:place]) for place in places)}]"


class Dialect(Protocol):
    """One server that serves one model.

    Attributes:
        kind: What the server is called.
        most_ids: Ids that one request may ask for by name; None where it tells any number.
    """

    kind: str
    most_ids: int | None

    def spell(self, text: str) -> Request:
        """The ids of a text, in which what spells a control token is one."""
        ...

    def rows(self, prefix: Prefix, ids: Sequence[int], since: int) -> Request:
        """What the model expects behind `ids[:since]`, ..., and `ids`."""
        ...

    def draft(self, prefix: Prefix, ids: Sequence[int], count: int) -> Request:
        """So many greedy tokens behind `ids` at most, and what it expected in front of each.

        None at all where it does not tell that about the first.
        """
        ...

    def ask(
        self, prefix: Prefix, ids: Sequence[int], wanted: Sequence[int], told: Container[int]
    ) -> Iterator[Request]:
        """One row, with these ids in it. Several requests, to be sent until all are told.

        `told` are the ids that the answers have told so far; it grows in between.
        """
        ...

    def among(
        self, prefix: Prefix, ids: Sequence[int], allowed: Sequence[int]
    ) -> Iterator[Request]:
        """One row, with the most probable of these ids in it. To be sent until one is told."""
        ...
