"""Getting to know a model on a server, and making a member of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import exp
from typing import Final

from safe_integrations.errors import (
    InvalidArgumentError,
    ModelLoadError,
    ModelNotFoundError,
    ServerError,
)
from safe_integrations.models.fork import check_process
from safe_integrations.models.local import tokenizer_of
from safe_integrations.models.member import TableOf, forms_of
from safe_integrations.models.rendering import Renderer
from safe_integrations.models.report import ModelReport
from safe_integrations.models.served.client import Client
from safe_integrations.models.served.dialect import UNREADABLE, Dialect, Prefix, Request, Told
from safe_integrations.models.served.find import Found, find
from safe_integrations.models.served.llama_server import LlamaServer
from safe_integrations.models.served.member import ServedMember
from safe_integrations.models.served.vllm import Vllm
from safe_integrations.models.spec import ModelCard, ModelSpec, Progress, name_of
from safe_integrations.models.tokenizer import Tokenizer

TOP: Final = 64
"""Ids per row where nobody says how many: of 165 merges, 164 needed no other (docs/serving.md)."""

_KEY: Final = "SAFE_INTEGRATIONS_API_KEY"
_IN_TURN: Final = "its server computes one text at a time"
_CAP: Final = re.compile(r"greater than max allowed: (\d+)")
_SPELLED: Final = "Hello world,\n\n  1 + 12 = 2024.\tÉtude don't 你好 😀 naïve()\r\nВерно\u00a0!"


def load(spec: ModelSpec, tell: Progress) -> ServedMember:
    """Gets to know a served model; a `ModelError` says why it cannot be used."""
    name = name_of(spec)
    check_process(name)
    tell(f"{name}: asking {spec.source}")
    with _loading():
        client = _client(spec)
        found = find(client, spec.model)
        tokenizer, table = _tokenizer(spec, found, tell)
        dialect, top, called = _probe(client, found, tokenizer, spec, tell)
        own = table(frozenset())
        if found.size is not None and found.size != own.size:
            raise ModelLoadError(
                f"{name}: {client.url} serves a model with {found.size} tokens, and the tokenizer "
                f"has {own.size}: set tokenizer to that of the model"
            )
        render = Renderer(tokenizer)
        return ServedMember(
            client,
            dialect,
            called,
            top,
            own,
            render,
            name=name,
            context_window=_window(found, spec),
            teaches=render.teaches,
            in_form=forms_of(tokenizer, render, table),
        )


def card_of(spec: ModelSpec) -> ModelCard:
    """What a server tells of a model; a `ModelError` where it does not."""
    with _loading():
        return ModelCard(name_of(spec), _window(find(_client(spec), spec.model), spec))


def report_of(spec: ModelSpec, tell: Progress) -> ModelReport:
    """What can be known of a served model; a `ModelError` where it cannot be used."""
    with _loading():
        client = _client(spec)
        found = find(client, spec.model)
        tokenizer, table = _tokenizer(spec, found, tell)
        _, top, _ = _probe(client, found, tokenizer, spec, tell)
    return ModelReport(
        name=name_of(spec),
        where=f"{client.url}: {found.model}, {found.kind}, {top} ids per row",
        dtype="served",
        weight_bytes=0,
        kv_bytes=0,
        context_window=_window(found, spec),
        tokens=table(frozenset()),
        teaches=Renderer(tokenizer).teaches,
        takes_turns=_IN_TURN if found.kind == LlamaServer.kind else None,
    )


@contextmanager
def _loading() -> Iterator[None]:
    try:
        yield
    except ServerError as error:
        raise ModelLoadError(str(error)) from error


def _client(spec: ModelSpec) -> Client:
    key = spec.api_key.get_secret_value() if spec.api_key else os.environ.get(_KEY)
    url = spec.source.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    return Client(name_of(spec), url, key or None, spec.request_timeout, spec.max_retries)


def _window(found: Found, spec: ModelSpec) -> int:
    """Tokens that a text may have; behind it the server wants to write one."""
    return min((found.window or sys.maxsize) - 1, spec.context_window or sys.maxsize)


def _tokenizer(spec: ModelSpec, found: Found, tell: Progress) -> tuple[Tokenizer, TableOf]:
    source = spec.tokenizer or found.loaded
    if source is None:
        raise InvalidArgumentError("tokenizer", None, "name the hub id or folder of the model")
    named = ModelSpec(source=source, name=name_of(spec), chat_template=spec.chat_template)
    try:
        return tokenizer_of(named, tell)
    except ModelNotFoundError as error:
        if spec.tokenizer is not None:
            raise
        raise ModelNotFoundError(
            f"{name_of(spec)}: {spec.source} says that it has loaded {source}, and its tokenizer "
            f"is not found here: set tokenizer ({error})"
        ) from error


def _probe(
    client: Client, found: Found, tokenizer: Tokenizer, spec: ModelSpec, tell: Progress
) -> tuple[Dialect, int, str | None]:
    """Tries what an answer will need: ids of this tokenizer, and rows that are long enough.

    Returns:
        How the server is asked, ids per row, and how it calls the model in its answers.
    """
    wanted = spec.top_logprobs or TOP
    _check_tokenizer(client, found.speak(wanted), tokenizer, spec, tell)
    ids = tokenizer.encode("Hello world")[:2]
    top = wanted
    try:
        told = _rows(client, found.speak(top), ids)
    except ServerError as error:
        cap = _CAP.search(error.problem)
        if cap is None:
            raise
        top = int(cap[1])
    else:
        top = min(wanted, *(len(row.ids) for row in told.rows))
    if top < wanted:
        if spec.top_logprobs is not None or top < 1:
            remedy = f"{client.url} tells {top} at most; vLLM is started with --max-logprobs"
            raise InvalidArgumentError("top_logprobs", wanted, remedy)
        tell(
            f"{name_of(spec)}: {client.url} tells {top} ids per row, and will be asked more often "
            f"than with {wanted} (vLLM: --max-logprobs {wanted})"
        )
        told = _rows(client, found.speak(top), ids)
    if not all(sum(exp(min(v, 1)) for v in row.logprobs) <= 1.01 for row in told.rows):
        remedy = "vLLM is started with --logprobs-mode raw_logprobs, its default"
        raise client.error(f"{client.url} tells no log-probabilities", remedy)
    dialect = found.speak(top)
    _check_questions(client, dialect, ids, told.rows[-1].ids)
    return dialect, top, told.model


def _check_questions(
    client: Client, dialect: Dialect, ids: Sequence[int], told: Sequence[int]
) -> None:
    """A vLLM before 0.26 takes no notice of ids that are asked for by name."""
    if dialect.kind != Vllm.kind:
        return
    other = min({*range(len(told) + 1)} - {*told})
    request = next(dialect.ask(Prefix(ids), [], [other], ()))
    if other not in _told(client, dialect, request, 1).rows[0].ids:
        problem = f"{client.url} does not tell the probability of an id that it is asked for"
        raise client.error(problem, "use a newer one: vLLM 0.26 or later")


def _rows(client: Client, dialect: Dialect, ids: Sequence[int]) -> Told:
    """Two rows of a short text."""
    return _told(client, dialect, dialect.rows(Prefix(ids[:1]), ids[1:], 0), len(ids))


def _told(client: Client, dialect: Dialect, request: Request, rows: int) -> Told:
    """What a server answers, of which so many rows are expected."""
    data = client.begin(request.url, request.body).result().data
    try:
        told = request.read(data)
        if len(told.rows) != rows or not all(row.ids for row in told.rows):
            raise ValueError(f"{len(told.rows)} rows")
    except UNREADABLE as error:
        problem = f"{client.url} does not answer as {dialect.kind} does ({error!r})"
        raise client.error(problem, "use a newer one (docs/serving.md)") from error
    return told


def _check_tokenizer(
    client: Client, dialect: Dialect, tokenizer: Tokenizer, spec: ModelSpec, tell: Progress
) -> None:
    """A tokenizer that is not the served model's would make nonsense of every answer."""
    request = dialect.spell(_SPELLED)
    try:
        ids = _told(client, dialect, request, 0).ids
    except ServerError as error:
        if error.status not in (404, 405):
            raise
        tell(f"{name_of(spec)}: {client.url} does not tokenise, so the tokenizer goes unchecked")
        return
    if list(ids) != tokenizer.encode(_SPELLED):
        raise ModelLoadError(
            f"{name_of(spec)}: {client.url} splits text otherwise than the tokenizer does here; "
            "set tokenizer to that of the model which it serves"
        )
