"""An answer behind reasoning: two texts, written one after the other by the same models.

The reasoning is written together like any text. The drafter ends it by its own closing tag, or the
budget does. Then every model reads it behind its own prompt, closed its own way, and the answer
begins: its calls, its structure and its max_tokens know nothing of what came before. A verifier
whose server failed in the reasoning is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Final

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.closing import check_room
from safe_integrations.engine.events import Event, Finished, Reasoned, TextDelta
from safe_integrations.engine.loop import write
from safe_integrations.engine.model import Cursor, Member, Reasoning
from safe_integrations.engine.units import Units
from safe_integrations.errors import ContextWindowError, InvalidArgumentError

BUDGET: Final = 1024
"""Tokens of the reasoning at most, where nobody says how many."""


def budget_of(options: GenerationConfig) -> int:
    """Most tokens of the reasoning that is asked for; 0 where none is."""
    return BUDGET if options.reasoning is True else int(options.reasoning)


def reason_first(
    members: Sequence[Member],
    reasonings: Sequence[Reasoning],
    cursors: Sequence[Cursor | None],
    config: EnsembleConfig,
    options: GenerationConfig,
    weights: Sequence[float],
    units: Units | None,
    cancel: Callable[[], bool],
) -> Generator[Event, None, None]:
    """Writes the reasoning, and the answer behind it.

    Args:
        members: The models, drafter first.
        reasonings: For each of them, how it reasons.
        cursors: For each of them its way through the answer's grammar; None where there is none.
        config: How they are merged.
        options: How the answer is made, and how much they may reason.
        weights: One per model, summing to 1.
        units: Where units of the models' text end; None to judge by tokens.
        cancel: Asked before every forward pass whether to stop.

    Returns:
        A generator of the reasoning's events, each in a `Reasoned`, and then of the answer's.

    Raises:
        InvalidArgumentError: The drafter does not reason.
        ContextWindowError: There is no room for it in some model's window.
    """
    if not reasonings[0].own:
        remedy = f"leave it out: the chat template of {members[0].name} knows no reasoning"
        raise InvalidArgumentError("reasoning", options.reasoning, remedy)
    budget = budget_of(options)
    for member, reasoning in zip(members, reasonings, strict=True):
        used = len(reasoning.prompt) + len(reasoning.closing) + options.max_tokens
        if used >= member.context_window:
            raise ContextWindowError(member.name, used, member.context_window)
        budget = min(budget, member.context_window - used)
    update = {"max_tokens": budget, "stop": (reasonings[0].end,), "response_format": None}
    freely = options.model_copy(update=update)

    def events() -> Generator[Event, None, None]:
        text, tokens = "", 0
        prompts = [reasoning.prompt for reasoning in reasonings]
        free = [None] * len(members)
        with closing(
            write(members, prompts, free, config, freely, weights, units, cancel)
        ) as thinking:
            for event in thinking:
                if isinstance(event, TextDelta):
                    text += event.text
                elif isinstance(event, Finished):
                    tokens = event.statistics.tokens
                yield Reasoned(event)
        prompts = [
            [*reasoning.prompt, *member.tokens.encode(text.rstrip().encode()), *reasoning.closing]
            for member, reasoning in zip(members, reasonings, strict=True)
        ]
        check_room(members, prompts, cursors[0], options.max_tokens)
        with closing(
            write(members, prompts, cursors, config, options, weights, units, cancel)
        ) as answer:
            for event in answer:
                if isinstance(event, Finished):
                    event.statistics.reasoning_tokens = tokens
                yield event

    return events()
