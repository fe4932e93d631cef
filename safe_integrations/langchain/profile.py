"""What LangChain plans with: what the models can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from safe_integrations.adapters.options import card_of

_MEDIA: Final = ("image", "audio", "video")
_WINDOW: Final = "max_input_tokens"


class Profile(dict[str, Any]):
    """A `ModelProfile`. The window is looked up when somebody asks for it: that takes seconds.

    Args:
        name: Of the ensemble.
        sources: Its models.
    """

    def __init__(self, name: str, sources: Sequence[Any]) -> None:
        super().__init__(name=name, open_weights=True, text_inputs=True, text_outputs=True)
        self.update({f"{kind}_{way}": False for kind in _MEDIA for way in ("inputs", "outputs")})
        self.update(pdf_inputs=False, reasoning_output=False, temperature=True)
        self.update(tool_calling=True, tool_choice=True, tool_call_streaming=True)
        self.update(structured_output=True, mid_conversation_system_messages=True)
        self._sources = sources

    def __missing__(self, key: str) -> Any:
        if key != _WINDOW:
            raise KeyError(key)
        self[key] = min(card_of(source).context_window for source in self._sources)
        return self[key]

    def __contains__(self, key: object) -> bool:
        return key == _WINDOW or super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, looked up where it is not known yet."""
        return self[key] if key in self else default
