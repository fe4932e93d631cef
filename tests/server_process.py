"""A server in a process of its own, which ends with the process that has started it.

A module that starts one is run again for it, with `Started` as the other end: that watches its
standard input, which the system closes when who holds the other end dies, however that happens.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """A server that answers.

    Attributes:
        address: Its address without a path.
        pid: The process that answers. Others may belong to it.
        starter: Ends them all when it is told to, when `pid` ends, or when these tests end.
    """

    address: str
    pid: int
    starter: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Where the endpoints of OpenAI's API are."""
        return f"{self.address}/v1"

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        """End it as a crash would: no answer, no farewell."""
        os.kill(self.pid, signal.SIGKILL)
        self.starter.wait()

    def stop(self) -> None:
        """End it; nothing happens where it has ended."""
        _end(self.starter)


@contextmanager
def server(module: str, *arguments: Any) -> Iterator[Server]:
    """Run a module, with arguments as JSON, until the block ends.

    Raises:
        AssertionError: It ended before it answered. Shows the end of its log.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        starter = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(arguments)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which end it then
        )
        assert starter.stdout
        try:
            pid, _, address = starter.stdout.readline().strip().partition(" ")
            if not address:
                log.seek(0)
                raise AssertionError(f"{module} {arguments} did not start:\n{log.read()[-8000:]}")
            yield Server(address, int(pid), starter)
        finally:
            _end(starter)


def _end(starter: subprocess.Popen[str]) -> None:
    assert starter.stdin and starter.stdout
    starter.stdin.close()
    starter.stdout.close()
    try:
        starter.wait(30)
    except subprocess.TimeoutExpired:
        starter.kill()
        starter.wait()


class Started:
    """The other end, in the process that `server` runs: says where the server answers."""

    def __init__(self) -> None:
        self._answer = os.dup(1)
        os.dup2(2, 1)  # servers write there as well

    def arguments(self) -> Any:
        return json.loads(sys.argv[1])

    def answers(self, pid: int, address: str) -> None:
        os.write(self._answer, f"{pid} {address}\n".encode())

    def wait(self) -> None:
        """Until the tests want an end, or are gone."""
        sys.stdin.read()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
