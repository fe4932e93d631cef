"""Takes calls out of an answer while it is being written.

What is read as a call depends on the form that all models of the ensemble have agreed on (`forms`).
Where that is Hermes JSON and text is free, habits of models that have no form of their own count
as well:

* `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]` anywhere;
* an answer that is nothing but JSON of one or more calls, in a code fence or not, with
  `arguments` or `parameters`. It counts only where every name is that of a tool that was offered.

How the text is cut into pieces changes the pieces that come out, never what they add up to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from safe_integrations.calls.bare import begins_call, calls_of, may_be_calls
from safe_integrations.calls.form import KEY, Form, dumps
from safe_integrations.calls.forms import HERMES, LIST
from safe_integrations.calls.scanner import CallScanner
from safe_integrations.calls.source import SPACE, BrokenCallError, CutOffError, Source
from safe_integrations.calls.types import (
    InvalidToolCall,
    ParsedAnswer,
    ToolCall,
    ToolCallDelta,
    new_call_id,
)
from safe_integrations.calls.values import (
    TYPES,
    Value,
    gemma_value,
    in_string,
    python_value,
    read_value,
    types_of,
)
from safe_integrations.config import Tool

_NAME: Final = r"[\w.-]+"

Piece = str | ToolCallDelta


@dataclass
class _Draft:
    """A call that is being read."""

    id: str
    name: str | None = None
    arguments: str = ""  # handed out, or written, as JSON text


class ToolCallStream:
    """Turns text deltas into text without calls, and pieces of calls.

    Where no tools were offered, all text is text.

    Args:
        tools: What may be called.
        form: How calls are written.
        lenient: Whether calls of other forms count, too, where the form is Hermes JSON.
        new_id: Makes ids of calls.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        form: Form = HERMES,
        *,
        lenient: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._tools = {tool.name: tool.parameters for tool in tools}
        self._form = form
        self._lenient = lenient and form is HERMES
        self._openings = {f.opening: f for f in ((LIST, form) if self._lenient else (form,))}
        self._new_id = new_id
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self._text: list[str] = []
        self._pieces: list[Piece] = []  # not handed out yet
        self._source = Source()
        self._space = ""  # white space that is dropped if a call follows
        self._reader = self._read()

    def push(self, delta: str) -> list[Piece]:
        """Takes in more of the answer; returns what is certain by now."""
        self._source.rest += delta
        next(self._reader, None)
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[Piece]:
        """Ends the answer; returns what was held back."""
        self._source.ended = True
        return self.push("")

    def answer(self) -> ParsedAnswer:
        """Everything so far, taken apart. Complete after `finish`."""
        return ParsedAnswer("".join(self._text), tuple(self._calls), tuple(self._invalid))

    # The readers below pause wherever they need more text, until the answer has ended

    def _read(self) -> Iterator[None]:
        source = self._source
        while not self._tools and not source.ended:
            self._say(source.pop(len(source.rest)))
            source.taken.clear()
            yield
        if self._form.alone or self._lenient:
            yield from self._read_alone()
        while opening := (yield from self._read_text()):
            self._space = self._space if self._text else ""
            yield from self._read_calls(self._openings[opening])
            yield from source.skip()
        if not self._calls and not self._invalid:
            self._say(self._space)

    def _read_alone(self) -> Iterator[None]:
        """Calls that are the whole answer, where it is one."""
        source, form = self._source, self._form
        if form.says:
            found = yield from source.begins(form.says, form.opening)
            source.pop(len(found))
            if found == form.opening:
                yield from self._read_calls(form)
        elif form.alone or self._lenient:
            while not source.ended and may_be_calls(source.rest, self._tools):
                if form.alone and begins_call(source.rest, self._tools):
                    yield from self._read_calls(form)
                    break
                yield
            for call in calls_of(source.rest, self._tools) if source.ended else ():
                source.rest = ""
                self._close(call, _Draft(self._new_id()))
        if form.alone:
            self._openings = {}

    def _read_text(self) -> Generator[None, None, str]:
        """Up to the next opening, which it returns; empty at the end of the answer."""
        source = self._source
        while True:
            source.taken.clear()
            end, opening = source.find(*self._openings)
            text = self._space + source.pop(end)
            shown = text.rstrip()
            self._space = text[len(shown) :]
            self._say(shown)
            if opening or source.ended:
                source.pop(len(opening))
                return opening
            yield

    def _read_calls(self, form: Form) -> Iterator[None]:
        """The calls behind an opening, and what closes them, which models forget."""
        source, more = self._source, True
        yield from source.expect_or_leave(form.around_calls[0])
        while more:
            yield from self._read_call(form)
            yield from source.skip(SPACE + ("," if form.section else ""))
            more = bool(form.section) and (yield from self._another(form))
        yield from source.skip(SPACE + ("]" if form.section else "}") * (form.kind == "object"))
        yield from source.expect_or_leave(
            form.end if form.kind == "object" else form.around_calls[1]
        )

    def _another(self, form: Form) -> Generator[None, None, bool]:
        """Whether another call comes next in a section."""
        begins = "{" if form.kind == "object" else "".join(form.around[0].split()[:1])
        if begins:
            return bool((yield from self._source.begins(begins)))
        return re.match(_NAME, self._source.rest) is not None

    def _read_call(self, form: Form) -> Iterator[None]:
        """A call; where it is none, all up to its last tag belongs to it."""
        source, draft = self._source, _Draft(self._new_id())
        source.taken.clear()
        before, between, after = form.around
        try:
            if form.kind == "object":
                yield from source.skip()
                yield from self._read_json(CallScanner(), draft)
                return
            yield from source.expect(before)
            draft.name = yield from source.word(_NAME)
            yield from source.expect(between)
            if form.kind == "json":
                yield from source.skip()
                yield from self._read_json(CallScanner(draft.name), draft)
                yield from source.expect_or_leave(after)
            else:
                yield from self._read_parameters(form, draft)
        except CutOffError as error:
            source.pop(len(source.rest))
            self._reject(draft, str(error), cut_off=True)
        except ValueError as error:
            with suppress(CutOffError):
                yield from source.until(*filter(None, [form.end]))
            self._reject(draft, str(error), cut_off=False)
            source.pop(len(form.end) if source.rest else 0)

    def _read_json(self, call: CallScanner, draft: _Draft) -> Iterator[None]:
        """A call that is a JSON object, or its arguments.

        Raises:
            BrokenCallError: It is none.
        """
        source = self._source
        while True:
            source.pop(len(source.rest) - len(call.take(source.rest)))
            first, news = not call.told, call.news()
            if news:
                self._tell(draft.id if first else None, call.name if first else None, news)
            if call.closed or source.ended:
                break
            yield
        draft.name, draft.arguments = call.name, call.arguments
        if call.broken:
            raise BrokenCallError("the call is not a JSON object")
        self._close(call, draft)

    def _close(self, call: CallScanner, draft: _Draft) -> None:
        try:
            name, arguments, written = call.result()
        except ValueError as error:
            self._reject(draft, str(error), cut_off=not call.closed)
        else:
            if not call.told:
                self._tell(draft.id, name, written)
            self._calls.append(ToolCall(draft.id, name, arguments))

    def _read_parameters(self, form: Form, draft: _Draft) -> Iterator[None]:
        """Parameters one by one, and what ends the call.

        Raises:
            ValueError: Something is none.
            CutOffError: The answer ends before.
        """
        source, arguments = self._source, dict[str, Any]()
        before, between, _ = form.around_value
        stop = form.around[2].split()[0] if form.kind == "raw" else form.around[2][0]
        self._add(draft, "{")
        while True:
            yield from source.skip()
            if (yield from source.begins(stop)):
                break
            if source.ended and stop.startswith(source.rest):
                raise CutOffError
            if arguments:
                yield from source.expect(form.comma)
            yield from source.expect(before)
            yield from source.skip()
            key = yield from source.word(KEY)
            said = yield from source.expect(between)
            value, written = yield from self._read_value(form, draft, key, said)
            self._add(draft, f"{', ' if arguments else ''}{dumps(key)}: {written}")
            arguments[key] = value
        source.pop(len(stop))
        yield from source.expect_or_leave(form.around[2].removeprefix(stop))
        self._add(draft, "}")
        self._calls.append(ToolCall(draft.id, draft.name or "", arguments))

    def _read_value(
        self, form: Form, draft: _Draft, key: str, said: list[str]
    ) -> Generator[None, None, Value]:
        """A value, read by what the tool's schema says of it."""
        source = self._source
        if form.kind == "gemma":
            return (yield from gemma_value(source))
        if form.kind == "python":
            return (yield from python_value(source))
        root = self._tools.get(draft.name or "", {})
        properties = root.get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        types = TYPES if schema is None else types_of(schema, root)
        if said:
            types = frozenset({"string"}) if said == ["true"] else types - {"string"}
        _, between, after = form.around_value
        text = yield from source.until(after.strip())
        while not types & {"string"} and in_string(text):  # the tag is part of one in JSON
            text += source.pop(len(after.strip()))
            text += yield from source.until(after.strip())
        source.pop(len(after.strip()))
        if between.endswith("\n"):
            text = text.removeprefix("\n").removesuffix("\n")
        return read_value(text, types)

    def _add(self, draft: _Draft, text: str) -> None:
        """Hands out more of a call's arguments."""
        first = not draft.arguments
        draft.arguments += text
        self._tell(draft.id if first else None, draft.name if first else None, text)

    def _reject(self, draft: _Draft, error: str, *, cut_off: bool) -> None:
        text = "".join(self._source.taken).strip()
        self._invalid.append(
            InvalidToolCall(draft.id, draft.name, draft.arguments, text, error, cut_off)
        )

    def _tell(self, call_id: str | None, name: str | None, arguments: str) -> None:
        piece = ToolCallDelta(len(self._calls) + len(self._invalid), call_id, name, arguments)
        last = self._pieces[-1] if self._pieces else ""
        if isinstance(last, ToolCallDelta) and last.number == piece.number:
            piece = replace(last, arguments=last.arguments + arguments)
            self._pieces.pop()
        self._pieces.append(piece)

    def _say(self, text: str) -> None:
        if text:
            self._text.append(text)
            before = self._pieces.pop() if self._pieces else ""
            self._pieces += [before + text] if isinstance(before, str) else [before, text]
