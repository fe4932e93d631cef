"""What the models are asked: a chat, a long context with two questions about it, and many chats."""

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

QUESTIONS: Final = tuple(
    [Message("user", question)]
    for question in (
        "Why is the sky blue?",
        "Write a short story about a fox and a dog.",
        "Explain to a beginner what a hash table is.",
        "List three reasons to learn Python.",
        "How do I bake a simple bread?",
        "What should I see on a weekend in Lisbon?",
        "Describe how a bicycle stays upright.",
        "Write a poem about the sea in autumn.",
        "What is the difference between weather and climate?",
        "How do vaccines work?",
        "Give me a plan for learning the guitar in a month.",
        "Why do cats purr?",
        "Tell me about the history of the printing press.",
        "How does a refrigerator keep food cold?",
        "Write an email to my landlord about a leaking tap.",
        "What are the rules of chess, in short?",
        "How can I sleep better at night?",
        "Explain the water cycle to a child.",
        "What makes a good team leader?",
        "Describe a market in a small town on a Saturday.",
        "How do bees make honey?",
        "Which vegetables are easy to grow on a balcony?",
        "What was the Industrial Revolution?",
        "Write a dialogue between two robots about tea.",
        "How is glass made?",
        "What is inflation, and why does it matter?",
        "Suggest a name for a bookshop, and say why.",
        "How do aeroplanes fly?",
        "What should I pack for a week in the mountains?",
        "Explain recursion with an example.",
        "Why do leaves change their colour?",
        "Write a letter from a sailor to his sister.",
        "How does a microwave oven heat food?",
        "What are the benefits of walking every day?",
        "Describe the planet Saturn.",
        "How do I prepare for a job interview?",
        "What is a black hole?",
        "Write the first lines of a detective novel.",
        "How do I remove a coffee stain from a shirt?",
        "Why is the sea salty?",
        "Compare trains and buses for a city.",
        "What does a compiler do?",
        "Explain why the moon has phases.",
        "Tell me a fable about a lazy ant.",
        "How can a family save electricity?",
        "What is the best way to learn new words?",
        "Describe how cheese is made.",
        "Why do we dream?",
    )
)
"""Short ones, as many users ask them at the same time."""
