"""Chat messages as the engine takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from safe_integrations.errors import InvalidArgumentError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: Final[tuple[str, ...]] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: What is said. Any text without lone surrogates; NUL is allowed.
        extra: Further fields handed to the chat template as they are (`name`, `tool_calls`,
            `tool_call_id`).
    """

    role: Role
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def as_messages(prompt: object) -> tuple[Message, ...]:
    """Reads a prompt: a string, a message, or a sequence of messages or `{role, content}` dicts.

    Raises:
        InvalidArgumentError: The prompt is empty, has an unknown role, content that is not text,
            or a lone surrogate (half of a character, which no tokenizer can write).
    """
    items: Iterable[object]
    if isinstance(prompt, str):
        items = [Message("user", prompt)]
    elif isinstance(prompt, Message | Mapping):
        items = [prompt]
    elif isinstance(prompt, Iterable):
        items = prompt
    else:
        raise InvalidArgumentError("messages", prompt, "pass a string or a list of messages")
    messages = tuple(_as_message(item, i) for i, item in enumerate(items))
    if not messages:
        raise InvalidArgumentError("messages", list(messages), "pass at least one message")
    return messages


def _as_message(item: object, index: int) -> Message:
    where = f"messages[{index}]"
    if isinstance(item, Mapping):
        rest = {str(k): v for k, v in item.items() if k not in ("role", "content")}
        item = Message(item.get("role"), item.get("content"), rest)  # type: ignore[arg-type]
    if not isinstance(item, Message):
        raise InvalidArgumentError(where, item, "pass a Message or a dict with role and content")
    if item.role not in ROLES:
        raise InvalidArgumentError(f"{where}.role", item.role, f"use one of {', '.join(ROLES)}")
    if not isinstance(item.content, str):
        raise InvalidArgumentError(f"{where}.content", item.content, "pass text")
    check_text(f"{where}.content", item.content)
    return item


def check_text(argument: str, text: str) -> None:
    """Refuses text that cannot be encoded as UTF-8.

    Raises:
        InvalidArgumentError: The text holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            argument,
            text[error.start : error.end],
            f"character {error.start} is half a surrogate pair; decode the text as UTF-16, or "
            'clean it with text.encode("utf-8", "replace").decode()',
        ) from None
