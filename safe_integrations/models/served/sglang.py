"""SGLang: `/generate` with token ids as prompts. By its source and documentation: never run."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

from safe_integrations.models.served.dialect import (
    NEUTRAL,
    Prefix,
    Request,
    Row,
    Told,
    body_of,
    spelling,
)

_Entry = Sequence[Any]
"""A log-probability, an id, and its text or None."""


class Sglang:
    """An SGLang server: it scores a text in one pass, so no prefix is sent twice.

    Args:
        url: Where its own endpoints are.
        top: Ids per row.
    """

    kind = "SGLang"
    most_ids: int | None = None

    def __init__(self, url: str, top: int) -> None:
        self._root = url
        self._top = top

    def spell(self, text: str) -> Request:
        """Without what is put in front of texts."""
        body = {"prompt": text, "add_special_tokens": False}
        return spelling(f"{self._root}/tokenize", body)

    def rows(self, prefix: Prefix, ids: Sequence[int], since: int) -> Request:
        """The text once; what stands before the first place comes from the cache.

        The first of the entries about the text is about nothing: its place is the one before.
        """

        def read(data: Any) -> Told:
            told = data["meta_info"]
            inside = told["input_top_logprobs"][1:]
            return _told(data, [*inside, told["output_top_logprobs"][0]])

        return self._request(prefix, ids, read, 1, logprob_start_len=prefix.length + since - 1)

    def draft(self, prefix: Prefix, ids: Sequence[int], count: int) -> Request:
        """The end that it writes is one of the tokens."""

        def read(data: Any) -> Told:
            return _told(data, data["meta_info"]["output_top_logprobs"])

        return self._request(prefix, ids, read, count)

    def ask(
        self, prefix: Prefix, ids: Sequence[int], wanted: Sequence[int], told: Container[int]
    ) -> Iterator[Request]:
        """Any number of ids in one request."""

        def read(data: Any) -> Told:
            return _told(data, [data["meta_info"]["output_token_ids_logprobs"][0]])

        yield self._request(prefix, ids, read, 1, token_ids_logprob=list(wanted))

    def among(
        self, prefix: Prefix, ids: Sequence[int], allowed: Sequence[int]
    ) -> Iterator[Request]:
        """All of them."""
        yield from self.ask(prefix, ids, allowed, ())

    def _request(
        self, prefix: Prefix, ids: Sequence[int], read: Any, count: int, **fields: Any
    ) -> Request:
        fields |= {
            "sampling_params": {**NEUTRAL, "max_new_tokens": count},
            "return_logprob": True,
            "top_logprobs_num": self._top,
            "return_text_in_logprobs": False,
        }
        body = body_of(fields, "input_ids", prefix.text(ids))
        return Request(f"{self._root}/generate", body, read)


def _told(data: Any, places: Sequence[Sequence[_Entry]]) -> Told:
    told = data["meta_info"]
    ids = [int(entry[1]) for entry in told["output_token_logprobs"]]
    cached = int(told.get("cached_tokens") or 0)
    computed = int(told["prompt_tokens"]) + len(ids) - 1 - cached
    rows = [Row([int(e[1]) for e in place], [float(e[0]) for e in place]) for place in places]
    return Told(rows, ids, cached, computed)
