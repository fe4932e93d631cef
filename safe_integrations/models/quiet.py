"""Silence while models are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

_guard: Final = threading.Lock()
_inside = 0
_restore = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the progress bars and warnings of transformers, and restores them afterwards.

    They are the process's: whoever comes first silences them, whoever leaves last restores them.
    """
    global _inside
    with _guard:
        if _inside == 0:
            _silence()
        _inside += 1
    try:
        yield
    finally:
        with _guard:
            _inside -= 1
            if _inside == 0:
                _restore.close()


def _silence() -> None:
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    _restore.callback(logging.set_verbosity, logging.get_verbosity())
    if logging.is_progress_bar_enabled():
        _restore.callback(logging.enable_progress_bar)
    if not are_progress_bars_disabled():
        _restore.callback(enable_progress_bars)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
