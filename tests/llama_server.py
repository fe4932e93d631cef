"""llama.cpp's own server in a process of its own, out of xllamacpp's wheel, for tests over HTTP.

The process ends with the test's: it watches its standard input, which the system closes when who
holds the other end dies, however that happens.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_integrations.models.embedded import embedded_file


@dataclass
class LlamaServer:
    """A server that answers.

    Attributes:
        address: Its address without a path, where llama.cpp's own endpoints are.
        process: Its process.
    """

    address: str
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Where the endpoints of OpenAI's API are."""
        return f"{self.address}/v1"

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End it as a crash would: no answer, no farewell."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it; nothing happens where it has ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def llama_server(
    model: Path | str,
    *,
    slots: int = 1,
    window: int = 2048,
    port: int = 0,
    swa_full: bool = True,
    alias: str | None = None,
    api_key: str | None = None,
    **parameters: Any,
) -> Iterator[LlamaServer]:
    """A server on loopback with one computing thread.

    Args:
        model: A GGUF file, or the name of an embedded model.
        slots: How many requests it computes at a time.
        window: Ids that a prompt and its answer may have together, in every slot.
        port: 0 takes a free one.
        swa_full: Whether layers with a sliding window keep all places, so that an answer can be
            cut back behind the window without reading it again. The server's own default is no.
        alias: The model's name in the server; without one the server names the file.
        api_key: What a request must show; None lets everybody in.
        parameters: More of xllamacpp's CommonParams.

    Raises:
        AssertionError: It did not start. Shows its log.
    """
    path = model if isinstance(model, Path) else embedded_file(model, lambda _: None)
    settings = {
        "n_ctx": window * slots,
        "n_parallel": slots,
        "port": port,
        "swa_full": swa_full,
        "api_keys": [api_key] if api_key else [],
        **parameters,
    }
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([str(path), alias, settings])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which end it then
        )
        assert process.stdout
        server = LlamaServer("", process)
        try:
            server.address = process.stdout.readline().strip()
            if not server.address:
                log.seek(0)
                raise AssertionError(f"llama-server did not start:\n{log.read()}")
            yield server
        finally:
            server.stop()


def _serve(path: str, alias: str | None, settings: dict[str, Any]) -> None:
    """Write the address to standard output, then serve until standard input ends."""
    answer = os.dup(1)
    os.dup2(2, 1)  # llama.cpp writes there as well
    from xllamacpp import CommonParams, Server

    parameters = CommonParams()
    parameters.model.path = path
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    if alias is not None:
        parameters.model_alias = {alias}
    for name, value in settings.items():
        setattr(parameters, name, value)
    server = Server(parameters)
    os.write(answer, f"{server.listening_address}\n".encode())
    sys.stdin.read()
    os._exit(0)  # not what a request still computes


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))
