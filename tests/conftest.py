"""What holds for the whole suite: no network, and hub lookups that fail at once."""

from __future__ import annotations

import os
import socket
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it comes first
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Threads that spin while they wait make torch crawl on a machine that does something else, too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Any:
    """Connecting to anything but this machine fails the test that tries it."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in _LOOPBACK:
            raise AssertionError(f"the test suite must not use the network: connect to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket.socket, "connect_ex", guarded)
        yield
