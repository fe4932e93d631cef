"""Reads one call, `{"name": ..., "arguments": {...}}`, or its arguments, while it is being written.

A partial JSON parser gives the values so far; here the text of the arguments is wanted, piece by
piece and as the model wrote it, and each piece is read once, however long the call becomes.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any, Final

_IN_STRING: Final = re.compile(r'[^"\\]+|["\\]')
_OUTSIDE: Final = re.compile(r'[{}\[\]",:]|[ \t\r\n]+|[0-9A-Za-z+\-.]+')
_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_NAME: Final = re.compile(r'"(?:tool_)?name"\s*:\s*("(?:[^"\\]|\\.)+")$')
_BEFORE_ARGUMENTS: Final = re.compile(r'"(?:arguments|parameters)"\s*:\s*$')


class CallScanner:
    """One JSON object that is a call, as far as it has been written.

    Args:
        name: The tool, where the object is its arguments alone.

    Attributes:
        name: The tool, once its value is complete.
        closed: Whether the object is complete, or broken.
        broken: Whether it holds something that no JSON object can hold.
        told: How many parts of the arguments `news` has handed out.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._alone = name is not None
        self.closed = False
        self.broken = False
        self.told = 0
        self._text: list[str] = []
        self._arguments: list[str] = []
        self._top: list[str] = []  # what is written at depth 1: keys and simple values
        self._depth = 0
        self._in_string = self._escaped = False
        self._in_arguments = self._alone

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
        self._in_string = self._escaped or part != '"'
        self._escaped = part == "\\" and not self._escaped
        if self._depth == 1 and not self._alone:
            self._top.append(part)
            if not self._in_string and self.name is None:
                name = _NAME.search("".join(self._top))
                with suppress(ValueError):  # then the whole will not be JSON either
                    self.name = _loads(name[1]) if name else None

    def _take_outside(self, part: str) -> None:
        top = self._depth <= 1 and not self._alone
        if top and part == ",":
            self._in_arguments = False
        elif top and not self._in_arguments and self._arguments[:1] != ["{"]:
            if _BEFORE_ARGUMENTS.search("".join(self._top)) and not part.isspace():
                self._in_arguments, self._arguments = True, []
        self._depth += (part in "{[") - (part in "}]")
        self._in_string = part == '"'
        self.closed = self._depth == 0
        if top:
            self._top.append(part)
        if self._alone:
            self._arguments.append(part)
        elif self._in_arguments and not self.closed and not (top and part.isspace()):
            self._arguments.append(part)
            self._in_arguments = self._depth > 1 or part not in "}]"


def _loads(text: str) -> Any:
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the call is not JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _escape(control: re.Match[str]) -> str:
    return json.dumps(control[0])[1:-1]
