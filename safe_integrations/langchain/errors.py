"""Errors that LangChain has an opinion about, as both it and this package know them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError

from safe_integrations.errors import ContextWindowError


class SafeContextOverflowError(ContextWindowError, ContextOverflowError):
    """The prompt leaves no room for an answer; middleware may shorten it and try again."""


@contextmanager
def overflow_of_langchain() -> Iterator[None]:
    """Raises the engine's `ContextWindowError` as the error that LangChain knows."""
    try:
        yield
    except ContextWindowError as error:
        raise SafeContextOverflowError(
            error.model, error.prompt_tokens, error.context_window
        ) from None
