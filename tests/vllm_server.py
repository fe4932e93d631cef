"""A vLLM server for CPUs, out of an environment of its own, for tests over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.server_process import Server, Started, free_port, server


@contextmanager
def vllm_server(
    command: str,
    folder: Path,
    name: str,
    *,
    window: int = 2048,
    top: int = 128,
    core: int = 0,
    api_key: str | None = None,
    options: tuple[str, ...] = (),
) -> Iterator[Server]:
    """A server on loopback, float32, with one computing thread; it takes a minute to start.

    Args:
        command: The program `vllm`.
        folder: A model as transformers keeps it.
        name: The model's name in the server.
        window: Ids that a prompt and its answer may have together.
        top: The most log-probabilities that a row may have.
        core: Where it computes.
        api_key: What a request must show; None lets everybody in.
        options: More of `vllm serve`'s.

    Raises:
        AssertionError: It did not start. Shows the end of its log.
    """
    port = free_port()
    line = f"""{command} serve {folder} --served-model-name {name} --host 127.0.0.1 --port {port}
        --dtype float32 --enforce-eager --max-model-len {window} --block-size 32
        --max-logprobs {top} --enable-prompt-tokens-details --generation-config vllm"""
    arguments = [*line.split(), *(["--api-key", api_key] if api_key else []), *options]
    with server(__name__, arguments, core, f"http://127.0.0.1:{port}") as running:
        yield running


def _serve() -> None:
    started = Started()
    command, core, address = started.arguments()
    process = subprocess.Popen(
        command,
        start_new_session=True,  # with its engine and workers, which outlive it
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )

    gone = threading.Event()

    def end_all(how: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)

    def end() -> None:
        started.wait()
        end_all(signal.SIGTERM)
        if not gone.wait(15):
            end_all(signal.SIGKILL)

    def tell() -> None:
        while not gone.wait(0.5):
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                return started.answers(process.pid, address)

    for work in (end, tell):
        threading.Thread(target=work, daemon=True).start()
    process.wait()
    gone.set()
    end_all(signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    _serve()
