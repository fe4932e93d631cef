"""What LangChain plans with: what the models can do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from langchain_core.language_models import ModelProfile

from safe_integrations.errors import ModelError

_CAN: Final = (
    *("open_weights", "text_inputs", "text_outputs", "temperature", "structured_output"),
    *("tool_calling", "tool_choice", "tool_call_streaming", "mid_conversation_system_messages"),
)
_CANNOT: Final = (
    *("image_inputs", "audio_inputs", "video_inputs", "pdf_inputs", "reasoning_output"),
    *("image_outputs", "audio_outputs", "video_outputs"),
)


def profile_of(name: str, window: Callable[[], int]) -> ModelProfile:
    """The profile of an ensemble. It has no window where the models cannot be looked up.

    Args:
        name: Of the ensemble.
        window: Reads its window.
    """
    can: dict[str, Any] = dict.fromkeys(_CAN, True) | dict.fromkeys(_CANNOT, False)
    with suppress(ModelError):
        can["max_input_tokens"] = window()
    return cast("ModelProfile", {"name": name, **can})
