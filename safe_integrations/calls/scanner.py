"""Reads one call, `{"name": ..., "arguments": {...}}`, while it is being written.

A partial JSON parser gives the values so far; here the text of the arguments is wanted, piece by
piece and as the model wrote it, and each piece is read once, however long the call becomes.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

ARGUMENT_KEYS: Final = ("arguments", "parameters")

_IN_STRING: Final = re.compile(r'[^"\\]+|["\\]')
_OUTSIDE: Final = re.compile(r'[{}\[\]",:]|[ \t\r\n]+|[0-9A-Za-z+\-.]+')
_CONTROL: Final = re.compile(r"[\x00-\x1f]")


class CallScanner:
    """One JSON object that is a call, as far as it has been written.

    Attributes:
        name: The tool, once its value is complete.
        closed: Whether the object is complete, or broken.
        broken: Whether it holds something that no JSON object can hold.
        told: How many parts of the arguments `news` has handed out.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.closed = False
        self.broken = False
        self.told = 0
        self._text: list[str] = []
        self._arguments: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._string: list[str] = []  # the string being read at depth 1
        self._key: object = None  # the last key at depth 1
        self._at_value = False  # at depth 1 its value comes, not the next key
        self._in_arguments = False

    @property
    def text(self) -> str:
        """Everything taken in."""
        return "".join(self._text)

    @property
    def arguments(self) -> str:
        """The arguments as far as they are written, as JSON text; empty where none was begun.

        Control characters inside strings, which models write and JSON forbids, are escaped.
        """
        return "".join(self._arguments)

    def news(self) -> str:
        """What has come to the arguments since the last call, once the name is known.

        Empty where they are no object: then `result` knows them.
        """
        if not self.name or self._arguments[:1] != ["{"]:
            return ""
        fresh = self._arguments[self.told :]
        self.told = len(self._arguments)
        return "".join(fresh)

    def take(self, text: str) -> str:
        """Takes in more, from the opening brace on; returns what lies behind the object."""
        at = 0
        while at < len(text) and not self.closed:
            part = (_IN_STRING if self._in_string else _OUTSIDE).match(text, at)
            if part is None or not (self._depth or part[0] == "{"):
                self.closed = self.broken = True
                break
            if self._in_string:
                self._take_in_string(_CONTROL.sub(_escape, part[0]))
            else:
                self._take_outside(part[0])
            at = part.end()
        self._text.append(text[:at])
        return text[at:]

    def result(self) -> tuple[str, dict[str, Any], str]:
        """The finished call: its name, its arguments, and these as JSON text.

        Raises:
            ValueError: It is not a call.
        """
        if not self.closed:
            raise ValueError("the call is incomplete")
        _loads(self.text)
        if not self.name:
            raise ValueError("the call has no name")
        written = self.arguments
        if written.startswith('"'):  # JSON inside a JSON string
            written = _loads(written).strip()
        if written in ("", "null"):
            written = "{}"
        arguments = _loads(written)
        if not isinstance(arguments, dict):
            raise ValueError("the arguments are not a JSON object")
        return self.name, arguments, written

    def _take_in_string(self, part: str) -> None:
        if self._in_arguments:
            self._arguments.append(part)
        if self._depth == 1:
            self._string.append(part)
        self._in_string = self._escaped or part != '"'
        self._escaped = part == "\\" and not self._escaped
        if self._depth == 1 and not self._in_string:
            self._end_string("".join(self._string))

    def _end_string(self, written: str) -> None:
        try:
            text = json.loads(written)
        except ValueError:  # the whole will not be JSON either
            return
        if not self._at_value:
            self._key = text
        elif self._key == "name" and not self.name:
            self.name = text

    def _take_outside(self, part: str) -> None:
        top = self._depth <= 1
        self._depth += (part in "{[") - (part in "}]")
        self.closed = self._depth == 0
        if part == '"':
            self._in_string = True
            self._string = [part]
        if top and part in ":,":
            self._at_value = part == ":"
            first = self._arguments[:1] != ["{"]
            self._in_arguments = self._at_value and first and self._key in ARGUMENT_KEYS
            if self._in_arguments:
                self._arguments = []
        elif self._in_arguments and not self.closed and not (top and part.isspace()):
            self._arguments.append(part)
            self._in_arguments = not (part in "}]" and self._depth == 1)


def _loads(text: str) -> Any:
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the call is not JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _escape(control: re.Match[str]) -> str:
    return json.dumps(control[0])[1:-1]
