"""Questions in a file, one per line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message, as_messages

STDIN: Final = Path("-")


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the file.

    Attributes:
        line: Its number, from 1.
        asked: The text, or the JSON object that the line holds.
    """

    line: int
    asked: str | dict[str, Any]

    def messages(self, system: str | None) -> tuple[Message, ...]:
        """The conversation to go on with.

        Args:
            system: A system message, for conversations that do not begin with one.

        Raises:
            InvalidArgumentError: The line does not say what to ask.
        """
        asked = self._conversation()
        if system is None or asked[0].role == "system":
            return asked
        return (Message("system", system), *asked)

    def _conversation(self) -> tuple[Message, ...]:
        match self.asked:
            case str() as text if text.lstrip().startswith("{"):
                remedy = 'this is not JSON; text that begins with a brace goes in {"prompt": "..."}'
                raise InvalidArgumentError("question", text, remedy)
            case str() as text:
                return as_messages(text)
            case {"prompt": _, "messages": _}:
                remedy = "give it prompt or messages, not both"
            case {"prompt": str() as text} if text:
                return as_messages(text)
            case {"prompt": _}:
                remedy = "its prompt must be a text, and not an empty one"
            case {"messages": given}:
                return as_messages(given)
            case _:
                remedy = "give it a prompt, or messages"
        raise InvalidArgumentError("question", self.asked, remedy)


def read_questions(file: Path) -> list[Question]:
    """Reads a file, or stdin for `-`. Blank lines are no questions, but count as lines.

    A line that begins with a brace is a JSON object with a `prompt` or with `messages`, and
    whatever else, which is not looked at. A line that cannot be used is found out when it is asked.

    Raises:
        InvalidArgumentError: The file cannot be read, is not UTF-8, or has no question in it.
    """
    try:
        data = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        remedy = f"it cannot be read: {error.strerror or error}"
        raise InvalidArgumentError("--file", str(file), remedy) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = f"it is not UTF-8: {error.reason} in line {line}"
        raise InvalidArgumentError("--file", str(file), remedy) from None
    lines = enumerate(text.split("\n"), 1)  # and not at all that Unicode knows as the end of a line
    questions = [Question(n, _read(line.removesuffix("\r"))) for n, line in lines if line.strip()]
    if not questions:
        raise InvalidArgumentError("--file", str(file), "there is no question in it")
    return questions


def same(one: object, other: object) -> bool:
    """Whether two JSON values are written the same; the order of keys is of no matter."""
    return _canonical(one) == _canonical(other)


def as_line(value: object) -> bytes:
    """A line of JSON, its end included, which no terminal obeys."""
    line = json.dumps(value, ensure_ascii=False).translate(_ESCAPED) + "\n"
    try:
        return line.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return (json.dumps(value) + "\n").encode()


_ESCAPED: Final = {c: f"\\u{c:04x}" for c in (*range(127, 160), 0x2028, 0x2029)}
"""Controls that JSON leaves as they are, and what some readers take for the end of a line."""


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _read(line: str) -> str | dict[str, Any]:
    if line.lstrip().startswith("{"):
        try:
            value: dict[str, Any] = json.loads(line)
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError):
            return line
        return value
    return line
