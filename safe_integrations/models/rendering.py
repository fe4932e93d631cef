"""Messages to prompt ids: by the model's chat template, or plainly where it has none."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from safe_integrations.calls.agreement import KNOWN, taught_form
from safe_integrations.calls.form import Form
from safe_integrations.calls.forms import HERMES
from safe_integrations.calls.plain import render_tools_plainly, tool_signature
from safe_integrations.config import Tool
from safe_integrations.errors import InvalidArgumentError, UnsupportedModelError
from safe_integrations.messages import Message

_SPEAKERS: Final = {"user": "User", "assistant": "Assistant", "tool": "Tool"}

_RESERVED: Final = frozenset(
    "conversation messages tools chat_template add_generation_prompt continue_final_message "
    "tokenize sanitize_control_tokens padding truncation max_length return_tensors return_dict "
    "return_assistant_tokens_mask tokenizer_kwargs".split()
)
"""What `apply_chat_template` takes besides a template's variables."""

_Turn = dict[str, Any]


class Renderer:
    """Turns conversations into the prompt ids of one model, for any thread.

    Control tokens are what the chat template writes. In what people, tools and documents say they
    are text: `<|im_end|>` in a retrieved page ends nobody's turn.

    Attributes:
        teaches: The form of a call that the chat template teaches; None where it is none we know.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.teaches = taught_form(self._known) if template_of(tokenizer, tools=True) else None
        self._lock = threading.Lock()  # reading control tokens as text changes the tokenizer
        first = tokenizer("")["input_ids"][:1]
        self._bos = first if first == [tokenizer.bos_token_id] else []

    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
        form: Form = HERMES,
    ) -> list[int]:
        """Renders messages as the beginning of an assistant's turn, in token ids.

        A template that refuses the conversation (no system role, strictly alternating roles) is
        asked again with neighbours of one role joined, then with the system text moved into the
        first turn, which becomes a user's. If that does not help, calls and results of tools are
        said in plain text. BOS comes first exactly once where the tokenizer writes it, whoever
        wrote it. `template_args` are further variables of the template (`enable_thinking`, ...).
        Tools are put in the template's own words where it teaches `form`, else in ours.

        Raises:
            InvalidArgumentError: The template refuses the conversation in any shape, or
                `template_args` holds something that is no variable of a template.
        """
        for name in _RESERVED & template_args.keys():
            remedy = "that is no variable of a chat template; leave it out"
            raise InvalidArgumentError(f"template_args[{name!r}]", template_args[name], remedy)
        with self._lock:
            ids = self._ids(messages, tools, template_args, form)
        return ids if ids[:1] == self._bos else [*self._bos, *ids]

    def _ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        args: Mapping[str, Any],
        form: Form,
    ) -> list[int]:
        plain_tools = render_tools_plainly(messages, tools, form)
        if template_of(self._tokenizer) is None:
            ids: list[int] = self._tokenizer(
                plain(plain_tools), add_special_tokens=False, split_special_tokens=True
            )["input_ids"]
            return ids
        refusal: Exception | None = None
        for shape, more in self._shapes(messages, plain_tools, tools, form):
            try:
                ids = self._tokenizer.apply_chat_template(
                    shape,
                    add_generation_prompt=True,
                    sanitize_control_tokens=True,
                    return_dict=False,
                    **more,
                    **args,
                )
            except Exception as error:  # a template may raise whatever it likes
                refusal = refusal or error
            else:
                return ids
        raise InvalidArgumentError(
            "messages",
            [m.role for m in messages],
            f"the model's chat template refuses this conversation: {refusal}",
        ) from refusal

    def _shapes(
        self,
        messages: Sequence[Message],
        plain_tools: Sequence[Message],
        tools: Sequence[Tool],
        form: Form,
    ) -> Iterator[tuple[list[_Turn], dict[str, Any]]]:
        """Ways to put a conversation, and what to give the template besides."""
        in_use = any(m.role == "tool" or m.extra.get("tool_calls") for m in messages)
        in_own_words = self.teaches is form or not (in_use or tools)
        if in_own_words:
            signatures = [tool_signature(tool) for tool in tools]
            # of several templates, the one that renders calls is taken where there are `tools`
            several = isinstance(self._tokenizer.chat_template, dict)
            more = {"tools": signatures} if tools or (several and in_use) else {}
            yield from ((shape, more) for shape in _shapes(messages))
        if in_use or tools:
            yield from ((shape, {}) for shape in _shapes(plain_tools))

    def _known(self, turns: list[_Turn], generation: bool) -> str | None:
        """Turns with the known tool, as text."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                tools=[tool_signature(KNOWN)],
                add_generation_prompt=generation,
                tokenize=False,
            )
        except Exception:  # a template may raise whatever it likes, and there may be none
            return None
        return text


def template_of(tokenizer: Any, *, tools: bool = False) -> str | None:
    """The chat template for a conversation with or without tools; None for a base model.

    Raises:
        UnsupportedModelError: There are several with names, and none is the default.
    """
    if not tokenizer.chat_template:
        return None
    try:
        template: str = tokenizer.get_chat_template(tools=[] if tools else None)
    except ValueError as error:
        raise UnsupportedModelError(
            f"{tokenizer.name_or_path}: none of its chat templates is the default; set "
            f"chat_template to one of {', '.join(tokenizer.chat_template)}"
        ) from error
    return template


def plain(messages: Sequence[Message]) -> str:
    """The rendering for base models: system text first, then `User:` and `Assistant:` turns."""
    parts = [m.content for m in messages if m.role == "system"]
    parts += [f"{_SPEAKERS[m.role]}:\n{m.content}" for m in messages if m.role != "system"]
    return "\n\n".join([*parts, "Assistant:\n"])


def _shapes(messages: Sequence[Message]) -> list[list[_Turn]]:
    turns = [{**m.extra, "role": m.role, "content": m.content} for m in messages]
    return [turns, _joined(turns), _joined(_user_first(turns))]


def _joined(turns: list[_Turn]) -> list[_Turn]:
    """Neighbours of one role made one turn; those that are more than text and a name stay alone."""
    joined: list[_Turn] = []
    for turn in turns:
        last = joined[-1] if joined else None
        texts = last is not None and {*last, *turn} <= {"role", "content", "name"}
        if last is not None and texts and last["role"] == turn["role"]:
            shared = {key: value for key, value in last.items() if turn.get(key) == value}
            joined[-1] = shared | {"content": f"{last['content']}\n\n{turn['content']}"}
        else:
            joined.append(turn)
    return joined


def _user_first(turns: list[_Turn]) -> list[_Turn]:
    """The system text at the beginning of a user's turn, which comes first, empty if need be."""
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    rest = [turn for turn in turns if turn["role"] != "system"]
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system}, *rest]
    if not system:
        return rest
    return [rest[0] | {"content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
