"""A vLLM, llama-server or SGLang in a thread of this process, which can be told to misbehave.

What it answers has the shapes of `tests/recorded`. All servers of a process run on one event loop.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from safe_integrations.models.served.client import Client
from safe_integrations.models.served.dialect import Dialect
from safe_integrations.models.served.llama_server import LlamaServer
from safe_integrations.models.served.member import ServedMember
from safe_integrations.models.served.sglang import Sglang
from safe_integrations.models.served.vllm import Vllm
from safe_integrations.testing import ScriptedMember

Kind = Literal["vllm", "llamacpp", "sglang"]
Row = Sequence[float]
"""Log-probabilities of all ids."""

NONE: Final = -9999.0
"""How vLLM writes minus infinity."""

LOWEST: Final = -3.4028234663852886e38
"""How a llama-server does."""


@dataclass
class Model:
    """What a server computes.

    Attributes:
        row: Token ids, the prompt included -> what is expected behind them.
        spell: The ids of a text.
        ends: Ids that end a text.
        window: Ids that a prompt and its answer may have together.
        name: How the server calls it.
        loaded: What it says that it has loaded.
    """

    row: Callable[[Sequence[int]], Row]
    spell: Callable[[str], list[int]] = lambda text: [*text.encode()]
    ends: frozenset[int] = frozenset()
    window: int = 4096
    name: str = "toy"
    loaded: str | None = None


def scripted(member: ScriptedMember, prompt: int = 1) -> Model:
    """A scripted member's model, behind prompts of so many ids."""
    session = member.start([])

    def row(ids: Sequence[int]) -> Row:
        logprobs: Row = session.score(ids[prompt:], len(ids) - prompt)[0].logits().tolist()
        return logprobs

    ends = frozenset({member.tokens.end_id})
    return Model(row, ends=ends, window=member.context_window + 1, name=member.name)


def at_random(size: int, **fields: Any) -> Model:
    """A model that expects something else behind every three ids, and always the same there."""

    def row(ids: Sequence[int]) -> Row:
        chance = np.random.default_rng(zlib.crc32(repr([*ids[-3:]]).encode()))
        logits = chance.normal(0, 3, size)
        logprobs: Row = (logits - np.log(np.exp(logits).sum())).tolist()
        return logprobs

    return Model(row, **{"ends": frozenset({0}), **fields})


@dataclass
class Seen:
    """A request that has come.

    Attributes:
        method: `GET` or `POST`.
        path: Where to.
        headers: By lower-case names.
        body: The JSON document; None where there is none.
        left: Whether who sent it closed the connection before it was answered.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    left: bool = False


@dataclass
class Exchange:
    """A request, the right answer to it, and the connection."""

    seen: Seen
    status: int
    data: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(
        self,
        body: bytes | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        upto: int | None = None,
    ) -> None:
        """Sends an answer; of its body, so many bytes."""
        kind = "application/json"
        if body is None and isinstance(self.data, list) and (self.seen.body or {}).get("stream"):
            kind = "text/event-stream"
            body = "".join(f"data: {json.dumps(event)}\n\n" for event in self.data).encode()
        body = json.dumps(self.data).encode() if body is None else body
        head = {"Content-Type": kind, "Content-Length": len(body), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        start = f"HTTP/1.1 {status or self.status} So\r\n{lines}\r\n"
        self.writer.write(start.encode() + body[:upto])
        await self.writer.drain()

    async def until_left(self) -> None:
        """Waits until who asked has gone."""
        while await self.reader.read(1 << 16):
            pass
        self.seen.left = True


Fault = Callable[[Exchange], Awaitable[None]]


def says(
    body: bytes | str, status: int = 200, kind: str = "application/json", **headers: str
) -> Fault:
    """Another body, or another status."""
    data = body.encode() if isinstance(body, str) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda x: x.send(data, status, {"Content-Type": kind, **named})


def refuses(status: int, message: str = "no", **headers: str) -> Fault:
    """An error in the form of OpenAI's API."""
    return says(json.dumps({"error": {"message": message, "code": status}}), status, **headers)


def changes(change: Callable[[Any], Any]) -> Fault:
    """The right answer, changed: in place, or for what is returned."""

    async def fault(x: Exchange) -> None:
        x.data = json.loads(json.dumps(x.data))
        changed = change(x.data)
        x.data = x.data if changed is None else changed
        await x.send()

    return fault


async def closes(x: Exchange) -> None:
    """Nothing is answered."""


async def stops_in_the_middle(x: Exchange) -> None:
    """Half a body, and the connection is closed."""
    await x.send(upto=20)


async def cuts(x: Exchange) -> None:
    """Half a JSON document, as if it were whole."""
    body = json.dumps(x.data).encode()
    await x.send(body[: len(body) // 2])


def answers_after(seconds: float) -> Fault:
    """The right answer, late."""

    async def fault(x: Exchange) -> None:
        await asyncio.sleep(seconds)
        await x.send()

    return fault


async def is_silent(x: Exchange) -> None:
    """Never answers."""
    await x.until_left()


async def drips(x: Exchange) -> None:
    """A byte now and then."""
    body = json.dumps(x.data).encode()
    await x.send(body, upto=1)
    left = asyncio.ensure_future(x.until_left())
    for byte in body[1:]:
        await asyncio.wait([left], timeout=0.05)
        if left.done():
            return
        x.writer.write(bytes([byte]))
    left.cancel()


class FaultyServer:
    """A server on loopback.

    Attributes:
        models: What it serves.
        requests: What it was asked, in order.
        accepted: Connections so far.
        open: Connections that are open.
        most_open: The most of them so far.
        key: What requests must show.
        cap: Ids per row that it tells at most, as `--max-logprobs` has it; None for all.
    """

    def __init__(self, kind: Kind, *models: Model) -> None:
        self.kind = kind
        self.models = list(models)
        self.requests: list[Seen] = []
        self.accepted = self.open = self.most_open = 0
        self.key: str | None = None
        self.cap: int | None = None
        self._turn: dict[str, deque[Fault | None]] = {}
        self._always: dict[str, Fault] = {}
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where the endpoints of OpenAI's API are."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[Seen]:
        """The requests for rows and drafts."""
        return [seen for seen in self.requests if seen.path in _COMPUTES]

    def play(self, *faults: Fault | None, path: str | None = None) -> None:
        """What to do at the next requests to a path, or for rows; None answers as it should."""
        for one in (path,) if path else _COMPUTES:
            self._turn[one] = deque(faults)

    def always(self, fault: Fault, path: str | None = None) -> None:
        """What to do at all requests that `play` says nothing of."""
        for one in (path,) if path else _COMPUTES:
            self._always[one] = fault

    def start(self) -> None:
        """Listens, on the port that it had before."""
        _run(self._start())

    def leave(self) -> None:
        """Ends as a process does that is killed: all connections break, none is accepted."""
        _run(self._leave())

    async def _start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, backlog=2000, limit=1 << 22
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in [*self._connections]:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        self.accepted += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        start = await reader.readexactly(1)
        if not start.isalpha():  # this is TLS
            return False
        head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        text = await reader.readexactly(int(headers.get("content-length", 0)))
        seen = Seen(method, path, headers, json.loads(text) if text else None)
        self.requests.append(seen)
        status, data = self._right(seen)
        exchange = Exchange(seen, status, data, reader, writer)
        turn = self._turn.get(path)
        fault = turn.popleft() if turn else self._always.get(path)
        if fault is None:
            await exchange.send()
            return True
        await fault(exchange)
        return fault not in (closes, stops_in_the_middle, is_silent, drips)

    def _right(self, seen: Seen) -> tuple[int, Any]:
        if self.key is not None and seen.headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        body, model = seen.body, self.models[0]
        if self.kind == "vllm" and body is not None and body["model"] != model.name:
            named = [m for m in self.models if m.name == body["model"]]
            if not named:
                message = f"The model `{body['model']}` does not exist."
                return 404, {"error": {"message": message, "code": 404}}
            model = named[0]
        match self.kind, seen.path:
            case _, "/v1/models":
                return 200, {"object": "list", "data": [self._entry(m) for m in self.models]}
            case _, "/tokenize":
                ids = model.spell(body["content" if self.kind == "llamacpp" else "prompt"])
                return 200, {"tokens": ids, "count": len(ids)}
            case "llamacpp", "/props":
                settings = {"n_ctx": model.window}
                return 200, {
                    "default_generation_settings": settings,
                    "total_slots": 1,
                    "model_path": model.loaded,
                }
            case "sglang", "/server_info":
                return 200, {"tokenizer_path": model.loaded, "max_req_input_len": model.window}
            case "vllm", "/v1/completions":
                return self._vllm(model, body)
            case "llamacpp", "/completion":
                return self._llama(model, body)
            case "sglang", "/generate":
                return self._sglang(model, body)
        return 404, {"detail": "Not Found"}

    def _entry(self, model: Model) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": model.name, "object": "model", "owned_by": self.kind}
        if self.kind == "llamacpp":
            return {**entry, "aliases": [model.name], "meta": {"n_vocab": len(model.row([0]))}}
        return {**entry, "root": model.loaded, "max_model_len": model.window}

    def _vllm(self, model: Model, body: dict[str, Any]) -> tuple[int, Any]:
        texts, top, wanted = body["prompt"], body["logprobs"], body.get("logprob_token_ids", ())
        texts = texts if isinstance(texts[0], list) else [texts]
        for given, most in ((top, self.cap), (len(wanted), 128)):
            if most is not None and given > most:
                problem = f"Requested sample logprobs of {given}, which is greater than max"
                return 400, {"error": {"message": f"{problem} allowed: {most}", "code": 400}}
        if max(map(len, texts)) + body["max_tokens"] > model.window:
            problem = f"This model's maximum context length is {model.window} tokens."
            return 400, {"error": {"message": problem, "code": 400}}
        choices: list[dict[str, Any]] = []
        for text in texts:
            ids, rows = _write(model, text, body["max_tokens"], body.get("allowed_token_ids"))
            places = [
                dict.fromkeys([i, *(wanted or _best(row, top))])
                for i, row in zip(ids, rows, strict=True)
            ]
            told = [
                {f"token_id:{i}": max(NONE, row[i]) for i in place}
                for place, row in zip(places, rows, strict=True)
            ]
            tokens = [f"token_id:{i}" for i in ids]
            choices.append(
                {
                    "index": len(choices),
                    "text": "",
                    "logprobs": {"tokens": tokens, "top_logprobs": told},
                    "finish_reason": "stop" if ids[-1] in model.ends else "length",
                    "token_ids": ids,
                }
            )
        usage = {"prompt_tokens": sum(map(len, texts)), "prompt_tokens_details": None}
        return 200, {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": model.name,
            "choices": choices,
            "usage": usage,
        }

    def _llama(self, model: Model, body: dict[str, Any]) -> tuple[int, Any]:
        texts = body["prompt"]
        several = isinstance(texts[0], list)
        results = []
        for text in texts if several else [texts]:
            if len(text) >= model.window:
                problem = f"request ({len(text)} tokens) exceeds the available context size"
                return 400, {"error": {"code": 400, "message": problem}}
            preferred = [i for i, _ in body.get("logit_bias", ()) if isinstance(i, int)]
            possible = [i for i in preferred if model.row(text)[i] > -np.inf]
            count = min(body["n_predict"], model.window - len(text))
            ids, rows = _write(model, text, count, possible)
            places = [
                {
                    "id": i,
                    "logprob": max(LOWEST, row[i]),
                    "top_logprobs": [
                        {"id": best, "token": "", "logprob": max(LOWEST, row[best])}
                        for best in _best(row, body["n_probs"])
                    ],
                }
                for i, row in zip(ids, rows, strict=True)
            ]
            results.append(
                {
                    "tokens": ids,
                    "completion_probabilities": places,
                    "model": model.name,
                    "timings/cache_n": 0,
                    "timings/prompt_n": len(text),
                }
            )
        if body.get("stream"):
            places = results[0].pop("completion_probabilities")
            parts = [
                {
                    "tokens": [place["id"]],
                    "tokens_predicted": n,
                    "completion_probabilities": [place],
                }
                for n, place in enumerate(places, 1)
            ]
            return 200, [*parts, {**results[0], "tokens": []}]
        return 200, results if several and len(results) > 1 else results[0]

    def _sglang(self, model: Model, body: dict[str, Any]) -> tuple[int, Any]:
        text, count = body["input_ids"], body["sampling_params"]["max_new_tokens"]
        if len(text) >= model.window:
            problem = f"Input length ({len(text)} tokens) exceeds the maximum allowed length"
            return 400, {"error": {"message": problem}}
        ids, rows = _write(model, text, min(count, model.window + 5 - len(text)))
        start, top = body.get("logprob_start_len"), body["top_logprobs_num"]
        inside = [] if start is None else [model.row(text[:n]) for n in range(start + 1, len(text))]

        def entries(row: Row, chosen: Sequence[int]) -> list[list[Any]]:
            return [[row[i], i, None] for i in chosen if row[i] > -np.inf]

        told = {
            "prompt_tokens": len(text),
            "cached_tokens": 0,
            "output_token_logprobs": [[row[i], i, None] for i, row in zip(ids, rows, strict=True)],
            "input_top_logprobs": [None, *(entries(row, _best(row, top)) for row in inside)],
            "output_top_logprobs": [entries(row, _best(row, top)) for row in rows],
        }
        if (wanted := body.get("token_ids_logprob")) is not None:
            told["output_token_ids_logprobs"] = [
                [[row[i], i, None] for i in wanted] for row in rows
            ]
        return 200, {"text": "", "output_ids": ids, "meta_info": told}


_COMPUTES: Final = ("/v1/completions", "/completion", "/generate")


def _best(row: Row, count: int) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]


def _write(
    model: Model, text: Sequence[int], count: int, allowed: Sequence[int] | None = None
) -> tuple[list[int], list[Row]]:
    """Greedy ids behind a text, an end included, and what was expected in front of each."""
    ids: list[int] = []
    rows: list[Row] = []
    while len(ids) < count and not (ids and ids[-1] in model.ends):
        rows.append(row := model.row([*text, *ids]))
        ids.append(max(allowed or range(len(row)), key=lambda i: (row[i], -i)))
    return ids, rows


def served(
    server: FaultyServer, member: ScriptedMember, top: int = 10_000, **given: Any
) -> ServedMember:
    """A scripted member whose rows a server computes (`scripted`).

    Args:
        server: What serves it.
        member: Whose tokens and prompts to take.
        top: Ids per row.
        given: Further arguments of a `ServedMember`, and `client`.
    """
    client = given.pop("client", None) or Client(member.name, server.url, server.key, 20, 2)
    top = min(top, member.tokens.size)
    dialects: dict[Kind, Callable[[], Dialect]] = {
        "vllm": lambda: Vllm(client.root, member.name, top),
        "llamacpp": lambda: LlamaServer(client.root, member.tokens.size, top),
        "sglang": lambda: Sglang(client.root, top),
    }
    called = None if server.kind == "sglang" else member.name
    fields = {"name": member.name, "context_window": member.context_window, **given}
    tokens = fields.pop("tokens", member.tokens)
    render: Any = member.render
    return ServedMember(client, dialects[server.kind](), called, top, tokens, render, **fields)


@contextmanager
def serving(kind: Kind, *models: Model) -> Iterator[FaultyServer]:
    """A server that answers."""
    server = FaultyServer(kind, *models)
    server.start()
    try:
        yield server
    finally:
        server.leave()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Waits for what happens in another thread; whether it has."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


_loops: list[asyncio.AbstractEventLoop] = []


def _run(work: Any) -> None:
    if not _loops:
        _loops.append(asyncio.new_event_loop())
        threading.Thread(target=_loops[0].run_forever, name="servers", daemon=True).start()
    asyncio.run_coroutine_threadsafe(work, _loops[0]).result(30)
