"""A network that takes its time, between a client and a server on the same machine."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from urllib.parse import urlsplit

_CHUNK = 1 << 16


def delayed(url: str, seconds: float) -> str:
    """Another URL of a server, by which a round trip takes longer; as long as this process lives.

    Args:
        url: Where the server is.
        seconds: How much longer. Half of that is one way.
    """
    parts = urlsplit(url)
    port: Future[int] = Future()
    run = _serve(parts.hostname or "localhost", parts.port or 80, seconds / 2, port)
    threading.Thread(target=asyncio.run, args=[run], daemon=True).start()
    return parts._replace(netloc=f"127.0.0.1:{port.result()}").geturl()


async def _serve(host: str, port: int, seconds: float, told: Future[int]) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        await asyncio.gather(_carry(reader, back, seconds), _carry(there, writer, seconds))

    server = await asyncio.start_server(connect, "127.0.0.1")
    told.set_result(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    """Passes on what comes, so much later, and the end of it."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def read() -> None:
        chunk = b"first"
        while chunk:
            try:
                chunk = await reader.read(_CHUNK)
            except ConnectionError:
                chunk = b""
            under_way.put_nowait((clock() + seconds, chunk))

    async def write() -> None:
        while True:
            due, chunk = await under_way.get()
            await asyncio.sleep(due - clock())
            if not chunk:
                writer.close()  # both ways: who sends no more wants no answer
                return
            writer.write(chunk)
            with suppress(ConnectionError):
                await writer.drain()

    await asyncio.gather(read(), write())
