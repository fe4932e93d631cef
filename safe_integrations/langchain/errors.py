"""Errors that LangChain has an opinion about, as both it and this package know them."""

from __future__ import annotations

from langchain_core.exceptions import ContextOverflowError

from safe_integrations.errors import ContextWindowError, GenerationCancelled


class SafeContextOverflowError(ContextWindowError, ContextOverflowError):
    """The prompt leaves no room for an answer; middleware may shorten it and try again."""


class SafeTimeoutError(GenerationCancelled, TimeoutError):
    """The answer was not complete after `timeout` seconds."""
