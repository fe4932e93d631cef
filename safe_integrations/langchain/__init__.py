"""LangChain: the ensemble as a chat model, `ChatSafe`, and a live trace of its work."""

from safe_integrations.errors import SafeTimeoutError
from safe_integrations.langchain.answer import result_of
from safe_integrations.langchain.chat_model import ChatSafe
from safe_integrations.langchain.errors import SafeContextOverflowError
from safe_integrations.langchain.handler import SafeTraceHandler

__all__ = [
    "ChatSafe",
    "SafeContextOverflowError",
    "SafeTimeoutError",
    "SafeTraceHandler",
    "result_of",
]
