"""The form of a call that all members of an ensemble share.

Members write one text, so a call in it has one form. Which one a chat template teaches is found by
rendering a known call and reading it back. Where all teach the same it is that, in each template's
own wording. Otherwise it is Hermes JSON: templates that teach it have their own wording, all others
are told of it in ours (`plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Final

from safe_integrations.calls.form import Form, dumps
from safe_integrations.calls.forms import FORMS, HERMES, form_named
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.config import Tool

Rendered = Callable[[list[dict[str, Any]], bool], str | None]
"""Renders turns where `KNOWN` is offered, with or without the beginning of an answer; None where
the template refuses."""

KNOWN: Final = Tool(
    name="look_up",
    description="Finds a word.",
    parameters={
        "type": "object",
        "properties": {
            "about": {"type": "string", "description": "The word."},
            "most": {"type": "integer", "description": "How many."},
            "within": {"type": "object", "description": "Where."},
            "exact": {"type": "boolean", "description": "Whether case counts."},
        },
        "required": ["about"],
    },
)
"""The tool that templates are asked about."""

ARGUMENTS: Final = {"about": 'a "b" c', "most": 3, "within": {"x": [1, "y"]}, "exact": True}

_SAID: Final = "qvsaid"
_ASKED: Final = {"role": "user", "content": "qvasked"}


@dataclass(frozen=True)
class Agreement:
    """How all members of an ensemble write calls.

    Attributes:
        form: How.
        why: Why so.
    """

    form: Form
    why: str

    def __str__(self) -> str:
        return f"{self.form.name}: {self.why}"


def agree(taught: Mapping[str, Form | None], wanted: str = "auto") -> Agreement:
    """Settles the form of calls for one ensemble.

    Args:
        taught: Name of a member -> what its template teaches; None where that is no known form.
        wanted: The name of a form that is fixed, or `auto`.

    Raises:
        InvalidArgumentError: There is no form of that name.
    """
    if wanted != "auto":
        return Agreement(form_named(wanted), "tool_form fixes it")
    forms = list(taught.values())
    shared = forms[0] if forms and all(form is forms[0] for form in forms) else None
    if shared is not None:
        return Agreement(shared, "all chat templates teach it")
    each = (f"{name} teaches {form.name if form else 'none'}" for name, form in taught.items())
    return Agreement(HERMES, ", ".join(each))


def taught_form(render: Rendered) -> Form | None:
    """The form that a chat template teaches; None where it is none that we know.

    Args:
        render: Renders by the template in question.
    """
    for arguments in (ARGUMENTS, dumps(ARGUMENTS)):
        call = {"name": KNOWN.name, "arguments": arguments}
        calls = [{"id": "call00000", "type": "function", "function": call}]
        turn = {"role": "assistant", "content": "", "tool_calls": calls}
        text = render([_ASKED, turn], False)
        if text is not None and _ASKED["content"] in text:
            asked = render([_ASKED], True) or ""
            said = render([_ASKED, {"role": "assistant", "content": _SAID}], False) or ""
            behind = text.rpartition(_ASKED["content"])[2]
            answer = text[len(commonprefix([text, asked])) :]
            if found := _read(behind, answer, said):
                return found
    return None


def _read(behind: str, answer: str, said: str) -> Form | None:
    """The form of the known call in a text, which is an answer from some place on.

    Args:
        behind: What follows the user's words.
        answer: The answer that is the call.
        said: A conversation with an answer that is text.
    """
    forms = [form for form in FORMS.values() if not form.says or form.says + _SAID in said]
    found = [form for form in forms if _reads(form, _answer(form, behind, answer))]
    spelled = "".join(behind.split())
    exact = (form for form in found if _spelling(form) in spelled)
    return next(exact, found[0] if found else None)


def _answer(form: Form, behind: str, answer: str) -> str:
    if form.says:  # what stands before it may be the beginning of a thought
        return behind[max(0, behind.find(form.opening)) :]
    return answer if form.alone else behind


def _reads(form: Form, text: str) -> bool:
    stream = ToolCallStream([KNOWN], form, lenient=False)
    stream.push(text)
    stream.finish()
    answer = stream.answer()
    calls = [(call.name, call.arguments) for call in answer.calls]
    return calls == [(KNOWN.name, ARGUMENTS)] and not answer.invalid


def _spelling(form: Form) -> str:
    """The known call as the form has it, without white space."""
    return "".join(form.write([(KNOWN.name, ARGUMENTS)]).split())
