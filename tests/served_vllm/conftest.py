"""Both models of the default pair, served by vLLM side by side.

`make served-check` installs vLLM in an environment of its own and sets VLLM to its command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from safe_integrations.models.embedded import EMBEDDED, embedded_folder
from tests.server_process import Server
from tests.vllm_server import vllm_server


@pytest.fixture(scope="session")
def vllm() -> str:
    """The program."""
    command = os.environ.get("VLLM")
    if not command:
        pytest.skip("VLLM does not name the vllm command")
    return os.path.abspath(command)


@pytest.fixture(scope="session")
def folders() -> dict[str, Path]:
    return {name: embedded_folder(name, lambda _: None) for name in EMBEDDED}


@pytest.fixture(scope="module")
def servers(vllm: str, folders: dict[str, Path]) -> Iterator[dict[str, Server]]:
    """Servers by the names of the models, which they serve by these names, each on a core."""
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                vllm_server(vllm, folder, name, core=cores[place % len(cores)])
            )
            for place, (name, folder) in enumerate(folders.items())
        }
