"""The ensemble as an LLM of LlamaIndex."""

from safe_integrations.llama_index.answer import result_of
from safe_integrations.llama_index.call import SafeCallError
from safe_integrations.llama_index.events import (
    SafeEnsemble,
    SafeEvent,
    SafeGenerationEnd,
    SafeGenerationStart,
    SafeModelLost,
    SafeVerification,
)
from safe_integrations.llama_index.llm import SafeLLM

__all__ = [
    "SafeCallError",
    "SafeEnsemble",
    "SafeEvent",
    "SafeGenerationEnd",
    "SafeGenerationStart",
    "SafeLLM",
    "SafeModelLost",
    "SafeVerification",
    "result_of",
]
