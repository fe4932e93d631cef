"""Several language models that write one answer together."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from safe_integrations.config import EnsembleConfig as EnsembleConfig
    from safe_integrations.config import GenerationConfig as GenerationConfig
    from safe_integrations.errors import SafeError as SafeError
    from safe_integrations.messages import Message as Message
    from safe_integrations.report.result import Result as Result
    from safe_integrations.safe_engine import SafeEngine as SafeEngine
    from safe_integrations.safe_engine import load_engine as load_engine

__version__ = "0.1.0"

_HOMES: Final = {
    "EnsembleConfig": "config",
    "GenerationConfig": "config",
    "Message": "messages",
    "Result": "report.result",
    "SafeEngine": "safe_engine",
    "SafeError": "errors",
    "load_engine": "safe_engine",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Imports a public name at first use, so that importing the package loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
