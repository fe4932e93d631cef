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
from collections.abc import Callable, Generator, Iterable, Iterator
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

    Where no tools were offered, all text is text.
    """

    def __init__(self, tools: Iterable[Tool], *, new_id: Callable[[], str] = new_call_id) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._new_id = new_id
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self._text: list[str] = []
        self._pieces: list[Piece] = []  # not handed out yet
        self._rest = ""  # taken in and not understood yet
        self._ended = False
        self._space = ""  # white space that is dropped if a call follows
        self._reader = self._read()

    def push(self, delta: str) -> list[Piece]:
        """Takes in more of the answer; returns what is certain by now."""
        self._rest += delta
        next(self._reader, None)
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[Piece]:
        """Ends the answer; returns what was held back."""
        self._ended = True
        return self.push("")

    def answer(self) -> ParsedAnswer:
        """Everything so far, taken apart. Complete after `finish`."""
        return ParsedAnswer("".join(self._text), tuple(self._calls), tuple(self._invalid))

    # The readers below pause wherever they need more text, until the answer has ended

    def _read(self) -> Iterator[None]:
        while not self._names and not self._ended:
            self._say(self._rest)
            self._rest = ""
            yield
        while not self._ended and may_be_calls(self._rest, self._names):
            yield
        for call in calls_of(self._rest, self._names) if self._ended else ():
            self._rest = ""
            self._close(call, self._new_id())
        while tag := (yield from self._read_text()):
            self._space = self._space if self._text else ""
            if tag == CALL_START:
                yield from self._read_tagged()
            else:
                yield from self._read_list()
            yield from self._skip(_SPACE)
        if not self._calls and not self._invalid:
            self._say(self._space)

    def _read_text(self) -> Generator[None, None, str]:
        """Up to the next tag, which it returns; empty at the end of the answer."""
        while True:
            tag = _TAG.search(self._rest)
            held = 0 if self._ended else _possible_tag(self._rest)
            end = tag.start() if tag else len(self._rest) - held
            text = self._space + self._rest[:end]
            shown = text.rstrip()
            self._space = text[len(shown) :]
            self._say(shown)
            self._rest = self._rest[tag.end() if tag else end :]
            if tag or self._ended:
                return tag[0] if tag else ""
            yield

    def _read_tagged(self) -> Iterator[None]:
        """The call behind an opening tag, and its closing tag, which models forget."""
        yield from self._skip(_SPACE)
        if not (yield from self._read_call()):
            return
        yield from self._skip(_SPACE + "}")  # models write one brace too many
        while CALL_END.startswith(self._rest) and self._rest != CALL_END and not self._ended:
            yield
        if CALL_END.startswith(self._rest):  # whole, or cut off
            self._rest = ""
        self._rest = self._rest.removeprefix(CALL_END)

    def _read_list(self) -> Iterator[None]:
        """The calls behind the tag of a list."""
        yield from self._skip(_SPACE + "[")
        more = not self._rest or self._rest.startswith("{")
        while more and (yield from self._read_call()):
            yield from self._skip(_SPACE + ",")
            more = self._rest.startswith("{")
        self._rest = self._rest.removeprefix("]")

    def _read_call(self) -> Generator[None, None, bool]:
        """A call; False where it is no JSON object: all up to a closing tag belongs to it then."""
        call, call_id = CallScanner(), self._new_id()
        while True:
            self._rest = call.take(self._rest)
            first, news = not call.told, call.news()
            if news:
                self._tell(call_id if first else None, call.name if first else None, news)
            if call.closed or self._ended:
                break
            yield
        if not call.broken:
            self._close(call, call_id)
            return True
        body = [call.text]
        while CALL_END not in self._rest and not self._ended:
            body.append(self._rest[: -len(CALL_END)])
            self._rest = self._rest[-len(CALL_END) :]
            yield
        end, _, self._rest = self._rest.partition(CALL_END)
        self._reject(call, call_id, "".join([*body, end]), "the call is not a JSON object")
        return False

    def _close(self, call: CallScanner, call_id: str) -> None:
        try:
            name, arguments, written = call.result()
        except ValueError as error:
            self._reject(call, call_id, call.text, str(error))
        else:
            if not call.told:
                self._tell(call_id, name, written)
            self._calls.append(ToolCall(call_id, name, arguments))

    def _reject(self, call: CallScanner, call_id: str, text: str, error: str) -> None:
        invalid = InvalidToolCall(
            call_id, call.name, call.arguments, text.strip(), error, not call.closed
        )
        self._invalid.append(invalid)

    def _tell(self, call_id: str | None, name: str | None, arguments: str) -> None:
        number = len(self._calls) + len(self._invalid)
        self._pieces.append(ToolCallDelta(number, call_id, name, arguments))

    def _say(self, text: str) -> None:
        if text:
            self._text.append(text)
            before = self._pieces.pop() if self._pieces else ""
            self._pieces += [before + text] if isinstance(before, str) else [before, text]

    def _skip(self, characters: str) -> Iterator[None]:
        """Drops characters, up to the first other one."""
        self._rest = self._rest.lstrip(characters)
        while not self._rest and not self._ended:
            yield
            self._rest = self._rest.lstrip(characters)


def _possible_tag(text: str) -> int:
    """Length of the longest end of a text that may be the beginning of a tag."""
    for length in range(min(len(text), _LONGEST_TAG - 1), 0, -1):
        if CALL_START.startswith(text[-length:]) or LIST_START.startswith(text[-length:]):
            return length
    return 0
