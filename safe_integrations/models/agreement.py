"""What all members agree on: nobody thinks first, and the next byte is the first of the answer.

Members of an ensemble write one text, so all prompts must end at the same place of it. Some chat
templates open a block of thoughts, some leave that to the model, some close it in the prompt, and
some end in front of a header that the model is to write. Which of these one does, and what brings
it to the answer, is read from renderings of conversations that are known. Models are not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from os.path import commonprefix
from typing import Any, Final

Turn = dict[str, Any]
Render = Callable[[list[Turn], bool, Mapping[str, Any]], str | None]
"""Renders turns, with the beginning of an answer or without; None where the template refuses."""

_ASKED: Final = "qaskedq"
_SAID: Final = "zsaidz"
_THOUGHT: Final = "wthoughtw"
_USER: Final[Turn] = {"role": "user", "content": _ASKED}
_ASSISTANT: Final[Turn] = {"role": "assistant", "content": _SAID}
_THOUGHTFUL: Final[Turn] = _ASSISTANT | {
    "reasoning_content": _THOUGHT,
    "reasoning": _THOUGHT,
    "thinking": _THOUGHT,
}

_OFF: Final = (False, 0, "none", "off", "disabled", "no_think")
"""How templates are told not to think, in a variable whose name speaks of thinking."""

_TAG: Final = re.compile(r"[<\[][^<>\[\]]+[>\]]")
_REST_OF_TAG: Final = re.compile(r"^[^<\[]*[>\]]")


@dataclass(frozen=True)
class Start:
    """Where the answer starts in the prompts of a template.

    Attributes:
        off: Arguments that switch thinking off where it is on by default.
        on: Arguments that switch it on where it is off by default.
        generation: How prompts end that stop short of the answer.
        header: What is missing behind `generation`: the end of a thought, or a header.
    """

    off: Mapping[str, Any] = field(default_factory=dict)
    on: Mapping[str, Any] = field(default_factory=dict)
    generation: str = ""
    header: str = ""

    def completed(self, prompt: str) -> str:
        """A prompt up to the first byte of the answer."""
        short = self.generation and prompt.endswith(self.generation)
        return prompt + self.header if short else prompt


def start_of(render: Render, variables: Collection[str], template: str) -> Start:
    """Finds out where the answer starts.

    Args:
        render: Renders by the template in question.
        variables: The names that the template asks for.
        template: Its text, where a tag that closes a thought is looked up.
    """
    off, on = _switches(render, variables)
    prompt = _prompt(render, off)
    if prompt is None:
        return Start()
    header = _header(render, off, prompt, closed=bool(off or on), template=template)
    return Start(off, on, _generation(render, off, prompt) if header else "", header)


def ends_of_thought(render: Render, template: str) -> re.Pattern[str]:
    """Matches what a template may take off the front of an answer of the past.

    Args:
        render: Renders by the template in question.
        template: Its text, where tags are looked for.
    """
    ends: dict[str, None] = {}
    for tag in dict.fromkeys(_TAG.findall(template)):
        for begin in ("", f"{tag.replace('/', '', 1)}\n"):
            told = f"{begin}{_THOUGHT}\n{tag}\n\n{_SAID}"
            past = [_USER, _ASSISTANT | {"content": told}, _USER, _ASSISTANT, _USER]
            text = render(past, False, {})
            if text is not None and text.count(_SAID) == 2 and told not in text:
                ends[re.escape(tag)] = None
    return re.compile(f".*(?:{'|'.join(ends)})\\s*" if ends else "(?!)", re.DOTALL)


def _switches(render: Render, variables: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that switch thinking off and on; only those that change what is the default."""
    default = _prompt(render, {})
    names = sorted(name for name in variables if re.search("think|reason", name))
    on = {name: _prompt(render, {name: True}) for name in names}
    for value, name in product(_OFF, names):
        off = _prompt(render, {name: value})
        written = str(value) in (off or "") and _last_tag(off) == _last_tag(default)
        if off not in (None, default, on[name]) and not written:
            return {name: value}, {}
    return {}, next(({name: True} for name in names if on[name] not in (None, default)), {})


def _header(
    render: Render, args: Mapping[str, Any], prompt: str, *, closed: bool, template: str
) -> str:
    """What is missing between a prompt and the answer.

    Args:
        render: Renders by the template in question.
        args: Arguments that switch thinking off.
        prompt: What follows the user's words in the prompt.
        closed: Whether thinking is off in it.
        template: The text of the template.
    """
    finished = [
        told
        for turns in ([_USER, _ASSISTANT], [_USER, _ASSISTANT, _USER])
        if (told := _before_answer(render(turns, False, args))) is not None
    ]
    for told in finished:  # the template writes more in front of an answer that is finished
        if told.startswith(prompt) and told != prompt:
            return _without_space(told[len(prompt) :])
    thinking = _before_answer(render([_USER, _THOUGHTFUL], False, {})) or ""
    opening, _, closing = thinking.partition(_THOUGHT)
    begun = max((i for i in range(len(closing) + 1) if prompt.endswith(closing[:i])), default=0)
    if closing[:begun].strip():  # the block is closed, and more follows
        return _without_space(closing[begun:])
    if not finished:
        return ""
    shared = _shared(prompt, finished[-1])
    written, opened = finished[-1][len(shared) :], prompt[len(shared) :].strip()
    if closed:
        header = _last_tag(written)
        return written if header and not prompt.rstrip().endswith(header) else ""
    if opened and closing:
        return closing
    if opened:
        tag = _last_tag(opened)
        end = f"{tag[:1]}/{tag[1:]}"
        return f"\n{end}\n\n" if tag and end in template else ""
    if closing and opening.startswith(prompt):  # the model opens a block by itself
        return opening[len(prompt) :] + closing
    return ""


def _generation(render: Render, args: Mapping[str, Any], prompt: str) -> str:
    """How every prompt ends, whoever spoke last."""
    turn = _behind_question(render([_USER], False, args))
    if turn is not None and prompt.startswith(turn) and prompt[len(turn) :].strip():
        return prompt[len(turn) :]
    other = render([_USER, _ASSISTANT], True, args) or prompt
    return _REST_OF_TAG.sub("", commonprefix([prompt[::-1], other[::-1]])[::-1])


def _prompt(render: Render, args: Mapping[str, Any]) -> str | None:
    """What follows the user's words in a prompt."""
    return _behind_question(render([_USER], True, args))


def _behind_question(text: str | None) -> str | None:
    return None if text is None or _ASKED not in text else text.rpartition(_ASKED)[2]


def _before_answer(text: str | None) -> str | None:
    """What stands between the user's words and a finished answer."""
    if text is None or _SAID not in text:
        return None
    return text.partition(_SAID)[0].rpartition(_ASKED)[2]


def _last_tag(text: str | None) -> str:
    return next(iter(_TAG.findall(text or "")[-1:]), "")


def _shared(one: str, other: str) -> str:
    """The beginning that two texts share, without half a tag."""
    shared = commonprefix([one, other])
    opened = max(shared.rfind("<"), shared.rfind("["))
    return shared[:opened] if opened > max(shared.rfind(">"), shared.rfind("]")) else shared


def _without_space(header: str) -> str:
    """A space at the end belongs to the first token of the answer."""
    return header.rstrip(" ")
