"""How calls are written by a chat template: which form it teaches, and whether that holds.

The measured functions take a way to render, so templates of any source can be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from safe_integrations.calls.agreement import ARGUMENTS, KNOWN, taught_form
from safe_integrations.calls.form import Form, dumps
from safe_integrations.calls.grammar import constraint_for
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.config import GenerationConfig
from safe_integrations.structure.closing import BYTES

Rendered = Callable[[list[dict[str, Any]], bool], str | None]
"""See `calls.agreement.Rendered`."""

_ASKED = {"role": "user", "content": "qvasked"}
_PLAIN = {"about": "x y", "most": 3}
"""Arguments that every way to write values spells alike."""


@dataclass(frozen=True)
class FormReport:
    """What is known of the calls of one template.

    Attributes:
        form: The form that it teaches; None where it is none that we know.
        enforced: Whether the grammar of the form lets a model write what the template writes.
        kept: Whether a call of the past is read in a conversation that went on.
    """

    form: Form | None
    enforced: bool = False
    kept: bool = False


def look_at(render: Rendered) -> FormReport:
    """Looks at one template, through what it renders where `KNOWN` is offered."""
    form = taught_form(render)
    if form is None:
        return FormReport(None)
    return FormReport(form, _enforces(form, render), _keeps(form, render))


def lines(found: Sequence[FormReport]) -> list[str]:
    """The numbers in Markdown."""
    forms = [report.form for report in found]
    names = {form.name for form in forms if form}
    own = sum(one is not None and one is other for one, other in product(forms, repeat=2))
    kept = sum(report.kept for report in found)
    enforced = sum(report.enforced for report in found)
    return [
        f"{sum(map(bool, forms))} templates teach one of {len(names)} forms of a tool call that we",
        f"know. {kept} calls of the past are read again in a conversation that went on, and",
        f"{enforced} are to the letter what the grammar allows. All {len(forms) ** 2:,} pairs,",
        f"in either order, agree on one form: {own} on that of both templates, the others on",
        "Hermes JSON.",
    ]


def _turns(arguments: Any) -> list[dict[str, Any]]:
    call = {"name": KNOWN.name, "arguments": arguments}
    calls = [{"id": "call00000", "type": "function", "function": call}]
    return [_ASKED, {"role": "assistant", "content": "", "tool_calls": calls}]


def _enforces(form: Form, render: Rendered) -> bool:
    """Whether some beginning of what follows the opening is a whole answer of the grammar."""
    text = render(_turns(_PLAIN), False) or render(_turns(dumps(_PLAIN)), False) or ""
    start = text.rfind(form.opening)
    options = GenerationConfig(tools=(KNOWN,), tool_choice="required")
    constraint = constraint_for(options, form)
    assert constraint is not None
    cursor, answer = constraint.cursor(BYTES), list(text[start:].encode())
    return start >= 0 and any(cursor.complete(answer[:n]) for n in range(len(answer) + 1))


def _keeps(form: Form, render: Rendered) -> bool:
    result = {"role": "tool", "tool_call_id": "call00000", "name": KNOWN.name, "content": "R"}
    said = [{"role": "assistant", "content": "It is R."}, {"role": "user", "content": "Thanks."}]
    for arguments in (ARGUMENTS, dumps(ARGUMENTS)):
        text = render([*_turns(arguments), result, *said], True)
        if text is None or _ASKED["content"] not in text:
            continue
        stream = ToolCallStream([KNOWN], form, lenient=False)
        behind = text.rpartition(_ASKED["content"])[2]
        stream.push(behind[behind.find(form.opening) :])
        stream.finish()
        found = [(call.name, call.arguments) for call in stream.answer().calls]
        return found == [(KNOWN.name, ARGUMENTS)]
    return False
