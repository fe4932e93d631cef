"""Requests to a server: pooled connections, retries, and errors that say what to do.

Every request asks for probabilities, or for tokens at temperature 0: it changes nothing on the
server, so one that has failed can be sent again, whatever became of it there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from time import perf_counter
from typing import Any, Final, NamedTuple
from weakref import finalize

import httpx

from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled, InvalidArgumentError, ServerError

_log: Final = logging.getLogger(__name__)

CONNECTIONS: Final = 256
"""Requests that are on their way to one server at the same time; others wait for these."""

_GLANCE: Final = 0.05
"""Seconds between two looks at whether to stop, for whoever waits."""

_CONNECT_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 5.0
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 8.0
_SHOWN: Final = 300
_dice: Final = Random()  # not the one that a program may have seeded

_Free = deque[tuple[float, httpx.AsyncClient]]
"""Since when each is."""


class Reply(NamedTuple):
    """What a server has answered.

    Attributes:
        data: The JSON document; of a stream of events the list of them.
        size: Its length in bytes.
        seconds: Wall time from when it was sent for until it had come, retries included.
    """

    data: Any
    size: int
    seconds: float


class Asked:
    """A request that is on its way."""

    def __init__(self, future: Future[Reply], cancel: Callable[[], bool]) -> None:
        self._future = future
        self._cancel = cancel

    def done(self) -> bool:
        """Whether the answer is there, or none will come."""
        return self._future.done()

    def result(self) -> Reply:
        """Waits for the answer.

        Raises:
            GenerationCancelled: The caller asked to stop.
            ServerError: There is none, or it is an error.
        """
        try:
            while True:
                try:
                    return self._future.result(_GLANCE)
                except TimeoutError:
                    if self._cancel():
                        raise GenerationCancelled from None
        except CancelledError:
            raise GenerationCancelled from None
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Closes its connection; that ends the work on the server."""
        self._future.cancel()


class Client:
    """One server.

    Args:
        name: How errors call the model that it computes.
        url: Where its API is, `http://host:port/v1`.
        key: What it is shown; None where it lets everybody in.
        timeout: Seconds that a request may take.
        retries: How often a request is sent again.

    Raises:
        InvalidArgumentError: No header can hold the key.
        ServerError: There is no way to such an address.
    """

    def __init__(self, name: str, url: str, key: str | None, timeout: float, retries: int) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._key = key
        self._timeout = timeout
        self._retries = retries
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise InvalidArgumentError("api_key", "...", "it may hold visible ASCII letters only")
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        try:
            self._another = partial(
                httpx.AsyncClient,
                headers=headers,
                timeout=httpx.Timeout(None, connect=min(_CONNECT_SECONDS, timeout)),
                verify=httpx.create_ssl_context(),
            )
            self._free: _Free = deque([(perf_counter(), self._another())])
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise self.error(f"{url} cannot be asked ({error})", _REACH) from error
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._loop = _loop()
        finalize(self, _close, self._free, self._loop).atexit = False

    @property
    def root(self) -> str:
        """Its address without the path of OpenAI's API: there are its own endpoints."""
        return self.url.removesuffix("/v1")

    def begin(self, url: str, body: str | None = None, cancel: Callable[[], bool] = never) -> Asked:
        """Sends a request: POST with a body, GET without.

        Args:
            url: Where to.
            body: A JSON document.
            cancel: Asked again and again by who waits for the answer, whether to stop.
        """
        return Asked(asyncio.run_coroutine_threadsafe(self._fetch(url, body), self._loop), cancel)

    def get(self, url: str) -> Any:
        """The JSON document at a URL."""
        return self.begin(url).result().data

    async def _fetch(self, url: str, body: str | None) -> Reply:
        started = perf_counter()
        for tries in range(self._retries + 1):
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**tries) * (1 + _dice.random()) / 2
            try:
                response = await self._send(url, body)
                if response.status_code in _AGAIN:
                    pause = max(pause, _retry_after(response))
                return self._read(response, perf_counter() - started)
            except ServerError as error:
                worth = error.status is None or error.status in _AGAIN
                if not worth or tries == self._retries or isinstance(error.__cause__, TimeoutError):
                    raise
                _log.debug("%s; once more in %.1f s", error, pause)
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _send(self, url: str, body: str | None) -> httpx.Response:
        try:
            async with self._room, asyncio.timeout(self._timeout), self._connection() as http:
                if body is None:
                    return await http.get(url)
                return await http.post(url, content=body)
        except TimeoutError as error:
            raise self.error(
                f"{url} has not answered within {self._timeout:g} seconds",
                "it may be busy: set request_timeout, or ask for less at a time",
            ) from error
        except httpx.ConnectTimeout as error:
            raise self.error(f"{url} cannot be reached", _REACH) from error
        except httpx.ConnectError as error:
            why = "" if "attempts failed" in str(error) else f" ({error})"
            raise self.error(f"{url} cannot be reached{why}", _REACH) from error
        except httpx.RequestError as error:
            told = str(error) or type(error).__name__
            raise self.error(
                f"{url} broke the connection off ({told})", "look into its log; it may have ended"
            ) from error
        except Exception as error:  # an address that nothing can come of
            raise self.error(f"{url} cannot be asked ({error})", _REACH) from error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """One that nobody uses; those that were not used lately are closed.

        Each is a client of its own: what httpx does to find a free one grows with their number.
        """
        http = self._free.pop()[1] if self._free else self._another()
        try:
            yield http
        finally:
            self._free.append((perf_counter(), http))
        while self._free and self._free[0][0] < perf_counter() - _IDLE_SECONDS:
            await self._free.popleft()[1].aclose()

    def _read(self, response: httpx.Response, seconds: float) -> Reply:
        status, url = response.status_code, response.url
        if not response.is_success:
            told = _short(self.blank(_message(response)), _SHOWN)
            raise self.error(f"{url} answered: {told}", _remedy(status), status)
        try:
            return Reply(_document(response), len(response.content), seconds)
        except (ValueError, RecursionError) as error:
            start = _short(self.blank(response.text), 80)
            raise self.error(f"{url} sent something that is no JSON: {start!r}", _ODD) from error

    def error(self, problem: str, remedy: str, status: int | None = None) -> ServerError:
        """An error in which no key stands, whoever repeats it."""
        return ServerError(self.name, self.blank(problem), remedy, status)

    def blank(self, text: str) -> str:
        """A text without the key."""
        if self._key is not None:
            for spelled in (self._key, json.dumps(self._key)[1:-1], repr(self._key)[1:-1]):
                text = text.replace(spelled, "...")
        return text


_REACH: Final = "start it, or check the address and the proxies of the environment"
_ODD: Final = "is it a vLLM, llama-server or SGLang, and nothing in between that cuts answers?"


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "set api_key in its ModelSpec, or SAFE_INTEGRATIONS_API_KEY in the environment"
    if status == 404:
        return "check the URL, which ends in /v1, and the name of the model"
    if status < 400:
        return "write the address that it sends you to, if it is yours"
    if status in (429, 503):
        return "it is busy or still loading: try again later, or raise max_retries"
    return "look into its log" if status >= 500 else "see docs/serving.md for what a server needs"


def _document(response: httpx.Response) -> Any:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        return json.loads(response.content)
    lines = response.content.split(b"\n")  # not where a token holds another kind of line end
    return [json.loads(line[5:]) for line in lines if line.startswith(b"data:")]


def _message(response: httpx.Response) -> str:
    """What an error says, in whichever of the forms that servers have for it."""
    try:
        data = response.json()
    except (ValueError, RecursionError):
        data = response.text
    for name in ("error", "message", "detail"):
        if isinstance(data, dict) and name in data:
            data = data[name]
    text = data if isinstance(data, str) else json.dumps(data)
    return " ".join(text.split()) or response.reason_phrase


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _retry_after(response: httpx.Response) -> float:
    told = response.headers.get("retry-after", "")
    return min(_LONGEST_PAUSE, float(told)) if told.isdecimal() else 0.0


_guard = threading.Lock()
_running: Final[list[asyncio.AbstractEventLoop]] = []


def _loop() -> asyncio.AbstractEventLoop:
    """Where all requests of this process are sent from, by a thread of its own."""
    with _guard:
        if not _running:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
            _running.append(loop)
        return _running[0]


def _start_afresh() -> None:
    """A forked process has the loop, but not the thread that runs it."""
    global _guard
    _guard = threading.Lock()
    _running.clear()


if hasattr(os, "register_at_fork"):  # not everywhere can a process be forked
    os.register_at_fork(after_in_child=_start_afresh)


def _close(free: _Free, loop: asyncio.AbstractEventLoop) -> None:
    """Closes the connections of a server that nobody uses any more."""

    async def close() -> None:
        for _, http in free:
            await http.aclose()

    asyncio.run_coroutine_threadsafe(close(), loop)
