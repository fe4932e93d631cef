"""Silence while models are fetched and read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


class _Silence:
    """Silences something of the process's: whoever leaves last restores it.

    Args:
        begin: Silences it, and notes how it is restored.
    """

    def __init__(self, begin: Callable[[ExitStack], None]) -> None:
        self._begin = begin
        self._guard = threading.Lock()
        self._inside = 0
        self._restore = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._guard:
            if self._inside == 0:
                self._begin(self._restore)
            self._inside += 1
        try:
            yield
        finally:
            with self._guard:
                self._inside -= 1
                if self._inside == 0:
                    self._restore.close()


@_Silence
def quiet_hub(restore: ExitStack) -> None:
    """Silences the progress bars of the hub, and restores them afterwards."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if not are_progress_bars_disabled():
        restore.callback(enable_progress_bars)
    disable_progress_bars()


@_Silence
def _quiet_transformers(restore: ExitStack) -> None:
    from transformers.utils import logging

    restore.callback(logging.set_verbosity, logging.get_verbosity())
    if logging.is_progress_bar_enabled():
        restore.callback(logging.enable_progress_bar)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the progress bars and warnings of transformers, and restores them afterwards."""
    with quiet_hub(), _quiet_transformers():
        yield
