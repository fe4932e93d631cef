"""llama.cpp's own server, out of xllamacpp's wheel, for tests over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safe_integrations.models.embedded import embedded_file
from tests.server_process import Server, Started, server


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
) -> Iterator[Server]:
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
    with server(__name__, str(path), alias, settings) as running:
        yield running


def _serve() -> None:
    started = Started()
    from xllamacpp import CommonParams
    from xllamacpp import Server as LlamaServer

    path, alias, settings = started.arguments()
    parameters = CommonParams()
    parameters.model.path = path
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    if alias is not None:
        parameters.model_alias = {alias}
    for name, value in settings.items():
        setattr(parameters, name, value)
    running = LlamaServer(parameters)
    started.answers(os.getpid(), running.listening_address)
    started.wait()
    os._exit(0)  # not what a request still computes


if __name__ == "__main__":
    _serve()
