"""What a grammar could not enforce, checked on finished answers, for both frameworks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from safe_integrations.calls.form import Form
from safe_integrations.calls.grammar import arguments_violation
from safe_integrations.calls.types import InvalidToolCall, ParsedAnswer
from safe_integrations.config import GenerationConfig, JsonSchema
from safe_integrations.structure.schemas import violation


def checked(
    answer: ParsedAnswer, options: GenerationConfig, form: Form, written: Mapping[str, str]
) -> tuple[ParsedAnswer, str | None]:
    """An answer whose calls break no schema, and what is wrong with the others or its text.

    Args:
        answer: The answer.
        options: How it was made.
        form: How calls are written in it.
        written: Id of a call -> its arguments as they were written.

    Returns:
        The answer, calls that break their tool's schema among those that are invalid; and which
        parts of which schemas are broken, None where none is.
    """
    tools = {tool.name: tool for tool in options.tools}
    broken = {
        call.id: problem
        for call in answer.calls
        if call.name in tools
        and (problem := arguments_violation(form, tools[call.name], call.arguments))
    }
    if broken:
        invalid = [
            InvalidToolCall(c.id, c.name, written[c.id], written[c.id], broken[c.id], cut_off=False)
            for c in answer.calls
            if c.id in broken
        ]
        calls = tuple(call for call in answer.calls if call.id not in broken)
        answer = replace(answer, calls=calls, invalid=(*answer.invalid, *invalid))
        return answer, "; ".join(f"the call of {c.name}: {c.error}" for c in invalid)
    wanted = options.response_format
    if isinstance(wanted, JsonSchema) and not answer.calls and not answer.invalid:
        try:
            return answer, violation(wanted.schema_, json.loads(answer.text))
        except ValueError:  # it broke off: that is said elsewhere
            pass
    return answer, None
