"""vLLM: `/v1/completions` with token ids as prompts (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any, Final

from safe_integrations.models.served.dialect import (
    NEUTRAL,
    Prefix,
    Request,
    Row,
    Told,
    body_of,
    spelling,
)

_MOST_IDS: Final = 128
"""Ids that a request may ask for by name, whatever `--max-logprobs` says."""

_NONE: Final = -9999.0
"""How a log-probability of minus infinity is written."""


class Vllm:
    """A vLLM server.

    Args:
        url: Where its own endpoints are.
        model: How it calls the model.
        top: Ids per row.
    """

    kind = "vLLM"
    most_ids: int | None = _MOST_IDS

    def __init__(self, url: str, model: str, top: int) -> None:
        self._root = url
        self._model = model
        self._top = top

    def spell(self, text: str) -> Request:
        """Without what is put in front of texts."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return spelling(f"{self._root}/tokenize", body)

    def rows(self, prefix: Prefix, ids: Sequence[int], since: int) -> Request:
        """All prefixes in one request, one token behind each."""
        texts = prefix.texts(ids, since)
        return self._request(texts, max_tokens=1, logprobs=self._top)

    def draft(self, prefix: Prefix, ids: Sequence[int], count: int) -> Request:
        """The end that it writes is one of the tokens."""
        return self._request(f"[{prefix.text(ids)}]", max_tokens=count, logprobs=self._top)

    def ask(
        self, prefix: Prefix, ids: Sequence[int], wanted: Sequence[int], told: Container[int]
    ) -> Iterator[Request]:
        """As many requests as it takes: 128 ids in each."""
        for at in range(0, len(wanted), _MOST_IDS):
            part = list(wanted[at : at + _MOST_IDS])
            texts = f"[{prefix.text(ids)}]"
            yield self._request(texts, max_tokens=1, logprobs=1, logprob_token_ids=part)

    def among(
        self, prefix: Prefix, ids: Sequence[int], allowed: Sequence[int]
    ) -> Iterator[Request]:
        """The token that is written when no other may be; what it told is before any mask."""
        texts = f"[{prefix.text(ids)}]"
        yield self._request(
            texts, max_tokens=1, logprobs=self._top, allowed_token_ids=list(allowed)
        )

    def _request(self, texts: str, **fields: Any) -> Request:
        fields |= {"model": self._model, "return_tokens_as_token_ids": True, **NEUTRAL}
        return Request(f"{self._root}/v1/completions", body_of(fields, "prompt", texts), _read)


def _read(data: Any) -> Told:
    rows: list[Row] = []
    ids: list[int] = []
    for choice in sorted(data["choices"], key=lambda choice: int(choice["index"])):
        logprobs = choice["logprobs"]
        ids += map(_id, logprobs["tokens"])
        rows += map(_row, logprobs["top_logprobs"])
    usage, texts = data.get("usage") or {}, len(data["choices"])
    # of the last text alone; others, which are shorter by a token each, mostly have as many
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    computed = int(usage.get("prompt_tokens", 0)) + len(ids) - texts - cached * texts
    return Told(rows, ids, cached, max(computed, len(ids)), data.get("model"))


def _row(told: dict[str, float]) -> Row:
    values = [float(value) for value in told.values()]
    return Row([_id(token) for token in told], [float("-inf") if v <= _NONE else v for v in values])


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))
