"""Reads one call, `{"name": ..., "arguments": {...}}`, character by character."""

from __future__ import annotations

import json
from typing import Any, Final

ARGUMENT_KEYS: Final = ("arguments", "parameters")

_PUNCTUATION: Final = frozenset('{}[]":,+-. \t\r\n')


class CallScanner:
    """One JSON object that is a call, as far as it has been written.

    Control characters inside strings, which models write and JSON forbids, are escaped.

    Attributes:
        name: The tool, once its value is complete.
        arguments: The arguments so far, as JSON text, where they are an object.
        raw: Everything taken in.
        closed: Whether the object is complete, or broken.
        broken: Whether it holds something that no JSON object can hold.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments = ""
        self.closed = False
        self.broken = False
        self._raw: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._string: list[str] = []  # the string being read, quotes included
        self._key: str | None = None  # the key at depth 1 whose value comes
        self._expects_value = False
        self._in_arguments = False

    @property
    def raw(self) -> str:
        """Everything taken in."""
        return "".join(self._raw)

    def take(self, char: str) -> None:
        """Takes in the next character of the object; the first one is its opening brace."""
        written = _escape(char) if self._in_string and char < " " else char
        self._raw.append(written)
        if self._in_string:
            self._take_in_string(written)
        else:
            self._take_outside(char)

    def _take_in_string(self, written: str) -> None:
        self._string.append(written)
        if self._in_arguments:
            self.arguments += written
        if self._escaped:
            self._escaped = False
        elif written == "\\":
            self._escaped = True
        elif written == '"':
            self._in_string = False
            if self._depth == 1:
                self._end_string("".join(self._string))

    def _end_string(self, written: str) -> None:
        text = _loads(written)
        if not self._expects_value:
            self._key = text
        elif self._key == "name" and isinstance(text, str) and self.name is None:
            self.name = text

    def _take_outside(self, char: str) -> None:
        if char not in _PUNCTUATION and not char.isalnum():
            self.closed = self.broken = True
            return
        opens, closes = char in "{[", char in "}]"
        if opens and self._depth == 1 and char == "{" and self._expects_value:
            self._in_arguments = self._key in ARGUMENT_KEYS and not self.arguments
        if self._in_arguments:
            self.arguments += char
        self._depth += opens - closes
        if char == '"':
            self._in_string = True
            self._string = ['"']
        elif self._depth == 1:
            self._in_arguments = self._in_arguments and not closes
            if char == ":":
                self._expects_value = True
            elif char == ",":
                self._expects_value = False
        self.closed = self._depth <= 0

    def result(self) -> tuple[str, dict[str, Any], str]:
        """The finished call: its name, its arguments, and these as JSON text.

        Raises:
            ValueError: It is not a call.
        """
        if not self.closed:
            raise ValueError("the call is incomplete")
        try:
            value = json.loads(self.raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the call is not JSON: {error}") from None
        name, arguments, written = read_call(value)
        if self.arguments:
            arguments, written = json.loads(self.arguments), self.arguments
        return self.name or name, arguments, written


def read_call(value: Any) -> tuple[str, dict[str, Any], str]:
    """Reads a call from JSON data: its name, its arguments, and these as JSON text.

    Raises:
        ValueError: It is not a call.
    """
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError("the call has no name")
    arguments = next((value[key] for key in ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):  # JSON inside a JSON string
        arguments = _loads(arguments) if arguments.strip() else None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are not a JSON object")
    return name, arguments, json.dumps(arguments, ensure_ascii=False)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _escape(char: str) -> str:
    return json.dumps(char)[1:-1]
