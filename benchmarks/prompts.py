"""What the models are asked: a chat, and a long context with two questions about it."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from safe_integrations.messages import Message

CONTEXT: Final = files(__package__).joinpath("context.txt").read_text(encoding="utf-8")
"""About 1,500 tokens about a town that does not exist."""

_STORY: Final = (
    "Write a very long story about a lighthouse keeper who finds a map in a bottle. Describe the "
    "whole journey in many chapters, with a title for each chapter, and do not stop early."
)
_REPORT: Final = (
    "Using only these notes, write a very long and detailed report on the history of Harrow Ferry. "
    "Go through the notes one after another and retell everything that each of them says."
)
_SECOND: Final = "Using only these notes, explain at length why the town refused the flood wall."


def _about_context(question: str) -> list[Message]:
    return [Message("user", f"Read these notes.\n\n{CONTEXT}\n{question}")]


PROMPTS: Final = {"chat": [Message("user", _STORY)], "rag": _about_context(_REPORT)}
"""Name -> conversation. All of them ask for more text than is measured."""

AGAIN: Final = _about_context(_SECOND)
"""The context of `rag` with another question behind it."""
