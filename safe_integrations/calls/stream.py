"""Takes calls out of an answer while it is being written.

Read, whatever the models' own habits are:

* `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` anywhere (Hermes, Qwen; what a forced
  call looks like);
* `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]` anywhere (Mistral);
* an answer that is nothing but JSON of one or more calls, in a code fence or not, with
  `arguments` or `parameters` (Llama 3, and models without a format of their own). It counts only
  where every name is that of a tool that was offered.

How the text is cut into pieces changes the pieces that come out, never what they add up to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from safe_integrations.calls.bare import calls_of, may_be_calls
from safe_integrations.calls.scanner import CallScanner
from safe_integrations.calls.types import (
    InvalidToolCall,
    ParsedAnswer,
    ToolCall,
    ToolCallDelta,
    new_call_id,
)
from safe_integrations.config import Tool
from safe_integrations.structure.calls import CALL_END, CALL_START

LIST_START: Final = "[TOOL_CALLS]"

_TAG: Final = re.compile(f"{re.escape(CALL_START)}|{re.escape(LIST_START)}")
_LONGEST_TAG: Final = max(len(CALL_START), len(LIST_START))
_SPACE: Final = " \t\r\n"

Piece = str | ToolCallDelta


class ToolCallStream:
    """Turns text deltas into text without calls, and pieces of calls.

    Args:
        tools: The tools that were offered. Without any, all text is text.
        new_id: Where ids of calls come from.
    """

    def __init__(self, tools: Iterable[Tool], *, new_id: Callable[[], str] = new_call_id) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._new_id = new_id
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self._text: list[str] = []
        self._rest = ""  # taken in and not understood yet
        self._space = ""  # white space that is dropped if a call follows
        self._scanner: CallScanner | None = None  # reads the call that is being written
        self._broken: CallScanner | None = None  # has read what turned out to be no call
        self._tag = ""  # the tag whose calls are being read; CALL_END behind a call
        self._behind_call = False  # white space that comes now is dropped
        self._id = ""
        self._told: int | None = None  # characters of arguments handed out; None: nothing at all
        self._at_start = bool(self._names)

    def push(self, delta: str) -> list[Piece]:
        """Takes in more of the answer; returns what is certain by now."""
        if not self._names:
            self._text.append(delta)
            return [delta] if delta else []
        self._rest += delta
        return _joined(self._advance(last=False))

    def finish(self) -> list[Piece]:
        """Ends the answer; returns what was held back."""
        return _joined(self._advance(last=True))

    def answer(self) -> ParsedAnswer:
        """Everything so far, taken apart. Complete after `finish`."""
        return ParsedAnswer("".join(self._text), tuple(self._calls), tuple(self._invalid))

    def _advance(self, last: bool) -> Iterator[Piece]:
        if self._at_start:
            if may_be_calls(self._rest, self._names) and not last:
                return
            self._at_start = False
            yield from self._whole_answer(last)
        before: object = None
        while self._rest and before != self._state():
            before = self._state()
            if self._scanner is not None:
                yield from self._read_call(self._scanner)
            elif self._broken is not None:
                self._read_broken(last)
            elif self._tag == CALL_END:
                self._after_call(last)
            elif self._tag:
                self._between_calls(last)
            else:
                yield from self._read_text(last)
        if last:
            yield from self._end()

    def _state(self) -> tuple[object, ...]:
        return self._rest, self._scanner, self._broken, self._tag

    def _whole_answer(self, last: bool) -> Iterator[Piece]:
        """An answer that is nothing but calls."""
        calls = calls_of(self._rest, self._names) if last else []
        for name, arguments, written in calls:
            self._open()
            yield ToolCallDelta(self._number(), self._id, name, written)
            self._calls.append(ToolCall(self._id, name, arguments))
        if calls:
            self._rest = ""

    def _read_text(self, last: bool) -> Iterator[Piece]:
        if self._behind_call:
            self._rest = self._rest.lstrip(_SPACE)
            if not self._rest:
                return
            self._behind_call = False
        tag = _TAG.search(self._rest)
        if tag is not None:
            yield from self._tell(self._rest[: tag.start()])
            self._rest = self._rest[tag.end() :]
            self._tag = tag[0]
            self._space = self._space if self._text else ""
            return
        held = 0 if last else _possible_tag(self._rest)
        keep = len(self._rest) - held
        yield from self._tell(self._rest[:keep])
        self._rest = self._rest[keep:]

    def _tell(self, text: str) -> Iterator[Piece]:
        """Hands out text, but keeps white space at its end."""
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._text.append(shown)
            yield shown

    def _between_calls(self, last: bool) -> None:
        """Inside a tag, before a call: finds its opening brace, or the tag's end."""
        self._rest = self._rest.lstrip(_SPACE + ("[," if self._tag == LIST_START else ""))
        if self._rest.startswith("{"):
            self._open()
            self._scanner = CallScanner()
        elif self._tag == LIST_START:
            if self._rest:
                self._rest = self._rest.removeprefix("]")
                self._leave_tag()
        elif self._rest:
            self._open()
            self._broken = CallScanner()
            self._read_broken(last)

    def _read_broken(self, last: bool) -> None:
        """A call that is no JSON object: all up to its closing tag belongs to it."""
        assert self._broken is not None
        end = self._rest.find(CALL_END)
        if end < 0 and not last:
            return
        body = self._broken.raw + (self._rest if end < 0 else self._rest[:end])
        self._rest = "" if end < 0 else self._rest[end + len(CALL_END) :]
        self._reject(self._broken.name, body.strip(), "the call is not a JSON object")
        self._broken = None
        self._leave_tag()

    def _after_call(self, last: bool) -> None:
        """Behind a tagged call: skips its closing tag, which models forget, and stray braces."""
        self._rest = self._rest.lstrip(_SPACE + "}")
        if self._rest.startswith(CALL_END):
            self._rest = self._rest.removeprefix(CALL_END)
            self._leave_tag()
        elif last or not CALL_END.startswith(self._rest):
            self._leave_tag()

    def _read_call(self, scanner: CallScanner) -> Iterator[Piece]:
        taken = 0
        for char in self._rest:
            scanner.take(char)
            taken += 1
            if scanner.closed:
                break
        self._rest = self._rest[taken:]
        yield from self._tell_arguments(scanner)
        if scanner.broken:
            self._scanner, self._broken = None, scanner
        elif scanner.closed:
            yield from self._close(scanner)

    def _tell_arguments(self, scanner: CallScanner) -> Iterator[Piece]:
        if scanner.name is None or not scanner.arguments:
            return
        if self._told is None:
            self._told = len(scanner.arguments)
            yield ToolCallDelta(self._number(), self._id, scanner.name, scanner.arguments)
        elif len(scanner.arguments) > self._told:
            fragment = scanner.arguments[self._told :]
            self._told = len(scanner.arguments)
            yield ToolCallDelta(self._number(), None, None, fragment)

    def _close(self, scanner: CallScanner) -> Iterator[Piece]:
        try:
            name, arguments, written = scanner.result()
        except ValueError as error:
            self._reject(scanner.name, scanner.arguments or scanner.raw, str(error))
        else:
            if self._told is None:  # no object was written: nothing, or JSON in a string
                yield ToolCallDelta(self._number(), self._id, name, written)
            self._calls.append(ToolCall(self._id, name, arguments))
        self._scanner = None
        self._tag = CALL_END if self._tag == CALL_START else self._tag

    def _end(self) -> Iterator[Piece]:
        if self._scanner is not None:
            yield from self._close(self._scanner)
        elif self._broken is not None:
            self._read_broken(last=True)
        elif self._tag == CALL_START:
            self._open()
            self._reject(None, "", "the call is empty")
        if self._space and not self._calls and not self._invalid:
            self._text.append(self._space)
            yield self._space
        self._space = ""

    def _leave_tag(self) -> None:
        self._tag = ""
        self._behind_call = True

    def _open(self) -> None:
        self._id = self._new_id()
        self._told = None

    def _number(self) -> int:
        return len(self._calls) + len(self._invalid)

    def _reject(self, name: str | None, text: str, error: str) -> None:
        self._invalid.append(InvalidToolCall(self._id, name, text, error))


def _possible_tag(text: str) -> int:
    """Length of the longest end of a text that may be the beginning of a tag."""
    for length in range(min(len(text), _LONGEST_TAG - 1), 0, -1):
        if CALL_START.startswith(text[-length:]) or LIST_START.startswith(text[-length:]):
            return length
    return 0


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring texts made one."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
