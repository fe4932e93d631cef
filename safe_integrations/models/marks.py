"""Marks: where each text of a conversation stands in a rendering, and which does not.

A chat template may drop what it is given, or change it, without a word. So a conversation is
rendered twice: as it is, and with a mark, a short word of letters, inside every text. Where the
marks come out the texts stand, whatever the template has written around them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

from safe_integrations.config import Tool
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message
from safe_integrations.models.shapes import Turn

Place = tuple[int, int]
"""Where a text begins and ends in a prompt, in characters."""

_SPELLINGS: Final[tuple[Callable[[str], str], ...]] = (
    lambda text: text,
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: re.sub("/(no_?)?think", "", text),  # a switch, which templates take out
)
"""How a template may write a text, part by part."""

_LAST_TAG: Final = re.compile(r"[<\[][^<>\[\]]+[>\]]$")


@dataclass(frozen=True)
class Reading:
    """What marks tell of a rendering.

    Attributes:
        prompt: The rendering.
        places: Where texts of the conversation stand in it.
        lost: What does not stand in it, or not in its order; None where all does.
    """

    prompt: str
    places: list[Place]
    lost: str | None


@dataclass(frozen=True)
class _Spot:
    """What a mark stands for, in front of `text[at]`: the text, or the control token before it."""

    what: str
    text: str
    at: int
    token: int = 0

    def place(self, prompt: str, at: int) -> Place | None:
        """Where in a prompt that stands, if the mark came out at `at`; None where it does not."""
        before, after = self.text[: self.at], self.text[self.at :]
        if self.token:
            start = at - self.token
            return (start, at) if start >= 0 and before.endswith(prompt[start:at]) else None
        for spell in _SPELLINGS:
            start, end = at - len(spell(before)), at + len(spell(after))
            if start >= 0 and prompt[start:end] == spell(before) + spell(after):
                return start, end
        return None


class Marked:
    """A conversation with marks in it.

    Args:
        messages: What was said.
        tools: What was offered.
        args: Further arguments of the template.
        control: What matches a control token.
        thought: What matches the part of an assistant's turn that a template may leave out.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        args: Mapping[str, Any],
        control: re.Pattern[str],
        thought: re.Pattern[str],
    ) -> None:
        given = repr((messages, tools, args))
        self._word = next(word for n in count() if (word := f"qv{'m' * n}k") not in given)
        self._mark = re.compile(f"{self._word}([0-9]+)z")
        self._control = control
        self._thought = thought
        self._spots: list[_Spot] = []
        self._names: dict[str, str] = {}
        self.tools = [self._tool(tool) for tool in tools]
        self.messages = [self._message(m, f"messages[{i}]") for i, m in enumerate(messages)]
        self.args: dict[str, Any] = self._unsaid(args)

    def read(
        self, plain: str, rendered: str, turns: Sequence[Turn], tools: Sequence[Tool]
    ) -> Reading:
        """Compares two renderings.

        Args:
            plain: The rendering of the conversation.
            rendered: That of the same conversation with these marks.
            turns: What `rendered` was made of.
            tools: What was handed to the template besides.
        """
        found, shift = [], 0
        for mark in self._mark.finditer(rendered):
            found.append((int(mark[1]), mark.start() - shift))
            shift += len(mark[0])
        bare = self._bare(rendered)
        if bare != plain and not any(spot.token for spot in self._spots):
            # the template has looked into a text, and a mark was in its way
            return self._searched(plain, turns)
        read = [(i, self._spots[i].place(bare, at)) for i, at in found]
        told = [i for i, place in read if place and not self._spots[i].token]
        lost = self._lost(told, turns, tools) or self._misspelt(rendered, turns)
        return Reading(bare, [place for _, place in read if place], lost)

    def _lost(
        self, told: Sequence[int], turns: Sequence[Turn], tools: Sequence[Tool]
    ) -> str | None:
        """What is not told as often as it was said, or not behind what was said before it."""
        anywhere, ordered = self._said(turns)
        offered = [(f"the tool {self._bare(t.name)}", self._marks_in(t.name)) for t in tools]
        system = [(self._spots[i].what, [i]) for i in anywhere]
        times = Counter(told)
        for what, group in [*ordered, *system, *offered]:
            times.subtract(group)
            if any(times[i] < 0 for i in group):
                return what
        rest = iter(told)
        for what, group in ordered:
            missing = Counter(group)
            while missing:
                if (i := next(rest, None)) is None:
                    return what
                missing -= Counter([i])
        return None

    def _searched(self, plain: str, turns: Sequence[Turn]) -> Reading:
        """Looks for the texts themselves; none of them spells a control token."""
        anywhere, ordered = self._said(turns)
        for i in anywhere:
            if self._find(i, plain, 0) is None:
                return Reading(plain, [], self._spots[i].what)
        end = 0
        for what, group in ordered:
            ends = [self._find(i, plain, end) for i in group]
            if None in ends:
                return Reading(plain, [], what)
            end = max([end, *(found for found in ends if found is not None)])
        return Reading(plain, [], None)

    def _find(self, i: int, prompt: str, start: int) -> int | None:
        """Where a text ends in a prompt, from `start` on."""
        spelt = (spell(self._spots[i].text) for spell in _SPELLINGS)
        return next((at + len(t) for t in spelt if (at := prompt.find(t, start)) >= 0), None)

    def _said(self, turns: Sequence[Turn]) -> tuple[list[int], list[tuple[str, list[int]]]]:
        """The marks that a rendering must hold: in any place, and in this order, group by group.

        System text at the beginning may stand anywhere: some templates put it into the last turn.
        """
        anywhere: list[int] = []
        ordered: list[tuple[str, list[int]]] = []
        for turn in turns:
            said = self._marks_in(turn["content"])
            if turn["role"] == "system" and not ordered:
                anywhere += said
            else:
                ordered += [(self._spots[i].what, [i]) for i in said]
            for call in turn.get("tool_calls") or ():
                what = f"a call of {self._bare(_parts(call)[0])}"
                ordered.append((what, self._marks_in(json.dumps(_parts(call)))))
        return anywhere, ordered

    def _bare(self, text: str) -> str:
        return self._mark.sub("", text)

    def _marks_in(self, text: str) -> list[int]:
        marks = [int(mark) for mark in self._mark.findall(text)]
        return [i for i in marks if not self._spots[i].token]

    def _misspelt(self, rendered: str, turns: Sequence[Turn]) -> str | None:
        """A call whose arguments stand there as Python, not as JSON or in a form of the model's."""
        for turn in turns:
            for call in turn.get("tool_calls") or ():
                arguments = _parts(call)[1]
                if isinstance(arguments, Mapping) and str(arguments) in rendered:
                    if str(arguments) != json.dumps(arguments, ensure_ascii=False):
                        return "the arguments of calls"
        return None

    # Putting marks in

    def _message(self, message: Message, where: str) -> Message:
        extra = {key: self._unsaid(value) for key, value in message.extra.items()}
        calls = message.extra.get("tool_calls")
        if calls:
            told = enumerate(calls)
            extra["tool_calls"] = [self._call(c, f"{where}.tool_calls[{i}]") for i, c in told]
        if message.extra.get("name") in self._names:
            extra["name"] = self._names[message.extra["name"]]
        thought = self._thought.match(message.content) if message.role == "assistant" else None
        cut = thought.end() if thought else 0
        content = self._text(message.content[:cut], "", said=False)
        content += self._text(message.content[cut:], f"{where}.content")
        return replace(message, content=content, extra=extra)

    def _call(self, call: Mapping[str, Any], where: str) -> dict[str, Any]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            remedy = 'pass {"id": ..., "function": {"name": ..., "arguments": ...}}'
            raise InvalidArgumentError(where, call, remedy)
        marked = {"name": self._name(function["name"])}
        if "arguments" in function:
            marked["arguments"] = self._arguments(function["arguments"], where)
        rest = {key: self._unsaid(value) for key, value in call.items()}
        return rest | ({"function": rest["function"] | marked} if "function" in call else marked)

    def _arguments(self, arguments: Any, where: str) -> Any:
        try:
            data = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            return self._text(arguments, where)
        marked = self._data(data, where)
        return json.dumps(marked, ensure_ascii=False) if data is not arguments else marked

    def _tool(self, tool: Tool) -> Tool:
        return tool.model_copy(
            update={
                "name": self._name(tool.name),
                "description": self._unsaid(tool.description),
                "parameters": self._unsaid(tool.parameters),
            }
        )

    def _name(self, name: str) -> str:
        """A tool's name has one mark in all places: templates look for the tool of a call."""
        if name not in self._names:
            self._names[name] = self._text(name, f"the tool {name}")
        return self._names[name]

    def _data(self, value: Any, where: str) -> Any:
        """Marks in all strings of arguments, and in the keys of what holds none."""
        if isinstance(value, str):
            return self._text(value, where)
        if isinstance(value, list | tuple):
            return [self._data(item, where) for item in value]
        if not isinstance(value, Mapping):
            return value
        marked = {}
        for key, item in value.items():
            before = len(self._spots)
            item = self._data(item, where)
            silent = len(self._spots) == before and isinstance(key, str)
            marked[self._text(key, where) if silent else self._unsaid(key)] = item
        return marked

    def _unsaid(self, value: Any) -> Any:
        """Marks at control tokens alone."""
        if isinstance(value, str):
            return self._text(value, "", said=False)
        if isinstance(value, Mapping):
            return {self._unsaid(key): self._unsaid(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._unsaid(item) for item in value]
        return value

    def _text(self, text: str, what: str, said: bool = True) -> str:
        body = text.strip()
        start = text.find(body)
        tokens = list(self._control.finditer(body))
        spots = [_Spot(what, body, token.end(), len(token[0])) for token in tokens]
        if said and body:
            tag = _LAST_TAG.search(body)
            at = tag.start() if tag else len(body) - 1
            at = next((t.start() for t in tokens if t.start() < at < t.end()), at)
            spots.append(_Spot(what, body, at))
        parts, end = [text[:start]], 0
        for spot in sorted(spots, key=lambda spot: spot.at):
            parts += [body[end : spot.at], f"{self._word}{len(self._spots)}z"]
            self._spots.append(spot)
            end = spot.at
        return "".join([*parts, body[end:], text[start + len(body) :]])


def _parts(call: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and arguments of a call in OpenAI's form."""
    function = call.get("function", call)
    return function["name"], function.get("arguments") or {}
