"""What a model's answer holds besides text: calls of tools."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model asks for a tool to be run.

    Attributes:
        id: Pairs the call with its result.
        name: The tool. In tagged forms it may be one that was never offered.
        arguments: What it is called with.
    """

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class InvalidToolCall:
    """Something that was meant as a call and cannot be read as one. It must never be carried out.

    Attributes:
        id: Pairs the call with its result.
        name: The tool; None where no name was written in full.
        arguments: The value of `arguments` or `parameters` as far as it was written and may be
            JSON: nothing but JSON text or the beginning of one, control characters in strings
            escaped. Empty where the call ends before it. Where pieces of the call were handed
            out, they add up to this.
        text: The whole call as the model wrote it, without tags and white space around it.
        error: What is wrong.
        cut_off: Whether the answer ended before the call did: more text might have made it a valid
            one. Otherwise it is malformed.
    """

    id: str
    name: str | None
    arguments: str
    text: str
    error: str
    cut_off: bool


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call that is being written.

    Attributes:
        number: Which call of this answer, from 0.
        id: Its id; only in the call's first piece.
        name: Its tool; only in the call's first piece.
        arguments: More of its arguments, as JSON text. All pieces together are one JSON object, or
            what was written of it where the call is invalid.
    """

    number: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer, taken apart.

    Attributes:
        text: The answer without its calls. Where there are calls, white space around them is gone.
        calls: In order.
        invalid: In order.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()


def new_call_id() -> str:
    """A fresh id in the usual form."""
    return f"call_{secrets.token_hex(12)}"
