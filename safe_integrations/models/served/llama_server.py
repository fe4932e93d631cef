"""llama.cpp's llama-server: `/completion` with token ids as prompts (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from itertools import takewhile
from typing import Any, Final

from safe_integrations.models.served.dialect import (
    Prefix,
    Request,
    Row,
    Told,
    body_of,
    spelling,
)

_MORE: Final = 2048
"""Ids per row where few are not enough; as quick as few."""

_MOST_IDS: Final = 128
"""Ids that are asked for by name at most: one request each is still quicker than a row of all."""

_PREFERENCE: Final = 200.0
"""More than logits differ by, and little enough to leave them 5 digits."""

_WHOLE: Final = {"n_predict": 1, "logit_bias": [["a", 1000]]}
"""Has it write a letter, and tell the row in front of it as the model has it.

It tells nothing about tokens that end inside a character.
"""

_NONE: Final = -1e30
"""A log-probability of minus infinity is written as the lowest number that there is."""

_PLAIN: Final = {
    # its defaults are not neutral
    "temperature": 0,
    "samplers": ["temperature"],
    "cache_prompt": True,
    "return_tokens": True,
    "response_fields": [
        "tokens",
        "completion_probabilities",
        "model",
        "timings/cache_n",
        "timings/prompt_n",
    ],
}


class LlamaServer:
    """A llama-server.

    It tells any number of ids per row, but none by name, except for the one that is written. So ids
    that a long row does not hold are written, one by one; tokens that end inside a character are
    in none but the row of all.

    Args:
        url: Where its own endpoints are.
        size: Tokens of the model.
        top: Ids per row.
    """

    kind = "llama-server"
    most_ids: int | None = _MOST_IDS

    def __init__(self, url: str, size: int, top: int) -> None:
        self._root = url
        self._size = size
        self._top = top

    def spell(self, text: str) -> Request:
        """Without what is put in front of texts."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return spelling(f"{self._root}/tokenize", body)

    def rows(self, prefix: Prefix, ids: Sequence[int], since: int) -> Request:
        """All prefixes in one request. One slot reads them in turn, a token each."""
        texts = prefix.texts(ids, since)
        return self._request(texts, _read, n_probs=self._top, **_WHOLE)

    def draft(self, prefix: Prefix, ids: Sequence[int], count: int) -> Request:
        """The end that it writes is one of the tokens; up to the first that ends in a character.

        A stream, although nobody reads it before its end: where the connection is closed it ends on
        the server at the next token, and the slot is free for the next draft. Others may go on.
        """
        fields = {"n_predict": count, "n_probs": self._top, "stream": True}
        return self._request(prefix.text(ids), _read_stream, **fields)

    def ask(
        self, prefix: Prefix, ids: Sequence[int], wanted: Sequence[int], told: Container[int]
    ) -> Iterator[Request]:
        """A long row, each id that it does not hold, and then a row of all."""
        text = prefix.text(ids)
        yield self._request(text, _read, n_probs=_MORE, **_WHOLE)
        for token_id in wanted:
            if token_id not in told:
                yield self._written(text, [token_id])
        yield self._request(text, _read, n_probs=self._size, **_WHOLE)

    def among(
        self, prefix: Prefix, ids: Sequence[int], allowed: Sequence[int]
    ) -> Iterator[Request]:
        """The one that is written where all of them are preferred, and then a row of all."""
        text = prefix.text(ids)
        yield self._written(text, allowed)
        yield self._request(text, _read, n_probs=self._size, **_WHOLE)

    def _written(self, text: str, among: Sequence[int]) -> Request:
        """What it tells of the most probable of some ids, before they were preferred."""
        preferred = [[token_id, _PREFERENCE] for token_id in among]
        return self._request(text, _read_written, n_predict=1, n_probs=1, logit_bias=preferred)

    def _request(
        self,
        texts: str,
        read: Callable[[Any], Told],
        **fields: Any,
    ) -> Request:
        body = body_of({**_PLAIN, **fields}, "prompt", texts)
        return Request(f"{self._root}/completion", body, read)


def _read(data: Any) -> Told:
    results = data if isinstance(data, list) else [data]
    places = [place for result in results for place in result["completion_probabilities"]]
    return Told(
        [_row(place["top_logprobs"]) for place in places],
        [int(place["id"]) for place in places],
        sum(result["timings/cache_n"] for result in results),
        sum(result["timings/prompt_n"] for result in results),
        results[0]["model"],
    )


def _read_written(data: Any) -> Told:
    places = data.get("completion_probabilities", ())  # none of a token that ends in a character
    rows = [Row([int(place["id"])], [_value(place)]) for place in places]
    cached, computed = data["timings/cache_n"], data["timings/prompt_n"]
    return Told(rows, (), cached, computed, data["model"])


def _read_stream(data: Any) -> Told:
    """Of tokens that end inside a character it says nothing; what follows the first is dropped."""
    *parts, end = data
    whole = takewhile(lambda pair: pair[0] == pair[1]["tokens_predicted"], enumerate(parts, 1))
    told = [part["completion_probabilities"][0] for _, part in whole]
    return Told(
        [_row(place["top_logprobs"]) for place in told],
        [int(place["id"]) for place in told],
        end["timings/cache_n"],
        end["timings/prompt_n"] + max(0, len(told) - 1),
        end["model"],
    )


def _row(told: list[dict[str, Any]]) -> Row:
    return Row([int(one["id"]) for one in told], [_value(one) for one in told])


def _value(told: dict[str, Any]) -> float:
    value = float(told["logprob"])
    return float("-inf") if value < _NONE else value
