"""A tokenizer's chat template: turns to text, and text to ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from safe_integrations.calls.agreement import KNOWN, taught_form
from safe_integrations.calls.form import Form
from safe_integrations.calls.plain import tool_signature
from safe_integrations.config import Tool
from safe_integrations.models.agreement import (
    Start,
    Thinking,
    ends_of_thought,
    start_of,
    thinking_of,
)
from safe_integrations.models.jinja import names_in, render
from safe_integrations.models.marks import Place
from safe_integrations.models.shapes import Turn
from safe_integrations.models.tokenizer import Tokenizer

_SPEAKERS: Final = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
_UNDEFINED: Final = re.compile("'(.+)' is undefined")


class Template:
    """One chat template of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        source: The template; None for base models, whose turns are written plainly.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None) -> None:
        self._tokenizer = tokenizer
        self._source = source

    def render(self, turns: Sequence[Turn], tools: Sequence[Tool], args: Mapping[str, Any]) -> str:
        """Renders a conversation and the beginning of an answer; raises whatever a template may."""
        if self._source is None:
            return plain(turns)
        signatures = {"tools": [tool_signature(tool) for tool in tools]} if tools else {}
        return self._rendered(turns, **{**self._needed, **signatures, **args})

    @cached_property
    def teaches(self) -> Form | None:
        """The form of a call that it teaches; None where it is none we know."""
        return None if self._source is None else taught_form(self.offering)

    def offering(self, turns: list[Turn], generation: bool) -> str | None:
        """Renders turns where the tool `KNOWN` is offered; None where the template refuses."""
        return self._probed(turns, generation, {"tools": [tool_signature(KNOWN)]})

    @cached_property
    def start(self) -> Start:
        """Where the answer starts in its prompts."""
        if self._source is None:
            return Start()
        return start_of(self._probed, self._variables, self._source)

    @cached_property
    def thinking(self) -> Thinking | None:
        """How thoughts in front of an answer are written; None where it knows none."""
        if self._source is None:
            return None
        return thinking_of(self._probed, self._variables, self._source)

    @cached_property
    def thought(self) -> re.Pattern[str]:
        """What matches the part of an assistant's turn that it may leave out."""
        return ends_of_thought(self._probed, self._source or "")

    @cached_property
    def control(self) -> re.Pattern[str]:
        """What matches a control token: special ones, and others that the template writes."""
        declared = self._tokenizer.control
        written = self._source or "" if declared is None else declared
        tokens = [
            token.content
            for token in self._tokenizer.added.values()
            if len(token.content) > 1 and not token.content.isspace()
            if token.special or token.content in written
        ]
        return re.compile(_any_of(tokens) if tokens else "(?!)")

    def encode(self, prompt: str, places: Sequence[Place]) -> list[int]:
        """The ids of a prompt, where control tokens that stand in `places` are text.

        They are cut in two, and the parts encoded one by one. All else has the ids that the
        tokenizer gives it.
        """
        if not any(self._spells_control(prompt, *place) for place in places):
            return self._tokenizer.encode(prompt)
        cuts: list[int] = []
        while True:
            parts = (self._part(prompt, *ends) for ends in pairwise([0, *cuts, len(prompt)]))
            tokens = [token for part in parts for token in part]
            spelled = [
                start + 1
                for token_id, start, end in tokens
                if token_id in self._control_ids
                and any(start < last and first < end for first, last in places)
            ]
            if not spelled:
                return [token_id for token_id, _, _ in tokens]
            cuts = sorted([*cuts, *spelled])

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text that goes behind a prompt; control tokens in it are such."""
        return [token_id for token_id, *_ in self._tokenizer.locate(text, behind=True)]

    def _spells_control(self, prompt: str, start: int, end: int) -> bool:
        """Whether a control token, as it seems, lies in a place or reaches into it."""
        reach = max(map(len, self._control_ids.values()), default=1) - 1
        near = self.control.finditer(prompt, max(start - reach, 0), end + reach)
        return any(token.start() < end and start < token.end() for token in near)

    def _part(self, prompt: str, start: int, end: int) -> list[tuple[int, int, int]]:
        """The tokens of a part of a prompt: id, first character, behind the last one."""
        tokens = self._tokenizer.locate(prompt[start:end], behind=start > 0)
        return [(i, start + first, start + last) for i, first, last in tokens]

    def _rendered(self, turns: Sequence[Turn], generation: bool = True, **args: Any) -> str:
        variables = {**self._tokenizer.variables, **args}
        return render(self._source or "", turns, generation=generation, variables=variables)

    def _probed(self, turns: list[Turn], generation: bool, args: Mapping[str, Any]) -> str | None:
        try:
            return self._rendered(turns, generation, **{**self._needed, **args})
        except Exception:  # a template may raise whatever it likes
            return None

    @cached_property
    def _needed(self) -> Mapping[str, Any]:
        """What the template cannot do without: a list of tools, or variables of its own."""
        needed: dict[str, Any] = {}
        while True:
            try:
                self._rendered([{"role": "user", "content": "?"}], **needed)
            except Exception as error:  # a template may raise whatever it likes
                missing = _UNDEFINED.search(str(error))
                if missing and missing[1] not in needed:
                    needed[missing[1]] = ""
                elif "tools" not in needed:
                    needed["tools"] = []
                else:
                    return {}
            else:
                return needed

    @cached_property
    def _variables(self) -> set[str]:
        return names_in(self._source or "")

    @cached_property
    def _control_ids(self) -> dict[int, str]:
        tokens = ((i, token.content) for i, token in self._tokenizer.added.items())
        return {i: content for i, content in tokens if self.control.fullmatch(content)}


def plain(turns: Sequence[Turn]) -> str:
    """The rendering for base models: system text first, then `User:` and `Assistant:` turns."""
    parts = [turn["content"] for turn in turns if turn["role"] == "system"]
    parts += [f"{_SPEAKERS[t['role']]}:\n{t['content']}" for t in turns if t["role"] != "system"]
    return "\n\n".join([*parts, "Assistant:\n"])


def _any_of(words: Iterable[str]) -> str:
    """A pattern that matches the longest of some words: a tree of them, for there are thousands."""
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}

    def pattern(node: dict[str, Any]) -> str:
        ways = [re.escape(letter) + pattern(rest) for letter, rest in node.items() if letter]
        either = ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"
        return f"(?:{either})?" if ways and "" in node else either if ways else ""

    return pattern(tree)
