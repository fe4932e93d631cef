"""Messages to prompt ids: by the model's chat template, or plainly where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message

_SPEAKERS: Final = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    chat_template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> list[int]:
    """Renders messages as the beginning of an assistant's turn.

    A template that refuses the conversation (no system role, strictly alternating roles) is asked
    again with the system text moved into the first user message and with neighbours of one role
    joined. BOS comes first exactly once where the tokenizer writes it, whoever wrote it.

    Args:
        tokenizer: The model's tokenizer.
        messages: The conversation.
        chat_template: A template instead of the tokenizer's own.
        template_args: Further variables of the template (`tools`, `enable_thinking`, ...).

    Returns:
        Token ids.

    Raises:
        InvalidArgumentError: The template refuses the conversation in any shape.
    """
    template = chat_template or getattr(tokenizer, "chat_template", None)
    if template is None:
        text = plain(messages)
    else:
        text = _templated(tokenizer, messages, chat_template, dict(template_args or {}))
    ids: list[int] = tokenizer(text)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    # Some tokenizers close every text with EOS; a prompt is not closed.
    if getattr(tokenizer, "add_eos_token", False) and ids[-1:] == [eos]:
        ids = ids[:-1]
    return ids


def plain(messages: Sequence[Message]) -> str:
    """The rendering for base models: system text first, then `User:` and `Assistant:` turns."""
    parts = [m.content for m in messages if m.role == "system"]
    parts += [f"{_SPEAKERS[m.role]}:\n{m.content}" for m in messages if m.role != "system"]
    return "\n\n".join([*parts, "Assistant:\n"])


def _templated(
    tokenizer: Any, messages: Sequence[Message], template: str | None, args: dict[str, Any]
) -> str:
    shapes = [_fields(messages)]
    shapes.append(_joined(shapes[0]))
    shapes.append(_joined(_system_in_user(shapes[0])))
    refusal: Exception | None = None
    for shape in shapes:
        try:
            text: str = tokenizer.apply_chat_template(
                shape, chat_template=template, add_generation_prompt=True, tokenize=False, **args
            )
        except Exception as error:  # a template may raise whatever it likes
            refusal = refusal or error
        else:
            return text
    raise InvalidArgumentError(
        "messages",
        [m.role for m in messages],
        f"the model's chat template refuses this conversation: {refusal}",
    ) from refusal


def _fields(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{**m.extra, "role": m.role, "content": m.content} for m in messages]


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role made one message; messages with further fields stay alone."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last["role"] == message["role"] and len(last) == len(message) == 2:
            joined[-1] = message | {"content": f"{last['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _system_in_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    rest = [m for m in messages if m["role"] != "system"]
    for i, message in enumerate(rest):
        if system and message["role"] == "user":
            rest[i] = message | {"content": f"{system}\n\n{message['content']}"}
            return rest
    return [{"role": "user", "content": system}, *rest] if system else rest
