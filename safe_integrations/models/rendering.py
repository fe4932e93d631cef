"""Messages to prompt ids: by the model's chat template, or plainly where it has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, Final, Protocol

from safe_integrations.calls.form import Form
from safe_integrations.calls.forms import HERMES
from safe_integrations.calls.plain import render_tools_plainly
from safe_integrations.config import Tool
from safe_integrations.engine.model import Reasoning
from safe_integrations.errors import InvalidArgumentError, UnsupportedModelError
from safe_integrations.messages import Message
from safe_integrations.models.marks import Marked
from safe_integrations.models.shapes import SHAPES, Turn
from safe_integrations.models.template import Template
from safe_integrations.models.tokenizer import Tokenizer

_RESERVED: Final = frozenset(
    "conversation messages tools chat_template add_generation_prompt continue_final_message "
    "tokenize sanitize_control_tokens padding truncation max_length return_tensors return_dict "
    "return_assistant_tokens_mask tokenizer_kwargs".split()
)
"""What `apply_chat_template` takes besides a template's variables."""


class Render(Protocol):
    """Writes prompts (`Member.render`, `Member.reason`)."""

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Tool], args: Mapping[str, Any], /
    ) -> list[int]:
        """Up to the answer."""
        ...

    def reason(
        self, messages: Sequence[Message], tools: Sequence[Tool], args: Mapping[str, Any], /
    ) -> Reasoning:
        """Up to the reasoning in front of it."""
        ...


class Renderer:
    """Turns conversations into the prompt ids of one model, for any thread.

    Every text, call and result stands in the prompt, in order, or there is no prompt. Control
    tokens are what the chat template writes. In what people, tools and documents say they are
    text: `<|im_end|>` in a retrieved page ends nobody's turn. The next byte behind a prompt is the
    first of the answer.

    Args:
        tokenizer: The tokenizer.

    Attributes:
        teaches: The form of a call that the chat template teaches; None where it is none we know.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._name = tokenizer.name
        self._form = HERMES
        plain, for_tools = (
            template_of(tokenizer.templates, self._name, tools=tools) for tools in (False, True)
        )
        self._template = Template(tokenizer, plain)
        same = for_tools == plain
        self._tool_template = self._template if same else Template(tokenizer, for_tools)
        self.teaches = self._tool_template.teaches
        self._bos = [] if tokenizer.bos is None else [tokenizer.bos]

    def writing(self, form: Form) -> Renderer:
        """The same where calls have another form than Hermes JSON."""
        other = copy(self)
        other._form = form
        return other

    @property
    def tags_of_thinking(self) -> tuple[str, ...]:
        """The tag that ends a thought, by which others must see that it has ended."""
        thinking = self._template.thinking
        return (thinking.end,) if thinking else ()

    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """Renders messages up to the beginning of an answer, in token ids.

        A rendering is checked (`marks`). Where the template refuses the conversation, or leaves
        some of it out, it is put another way (`shapes`); in the end calls and results of tools are
        said in plain text. BOS comes first exactly once where the tokenizer writes it, whoever
        wrote it. `template_args` are further variables of the template. With `enable_thinking` the
        model is told to think, and the prompt ends where the template ends it. Tools are put in the
        template's own words where it teaches the form of a call, else in ours.

        Raises:
            InvalidArgumentError: The template refuses the conversation in every shape, or leaves
                some of it out, or `template_args` holds what is no variable of a template.
        """
        return self._prompt(messages, tools, template_args, reasoning=False)[1]

    def reason(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> Reasoning:
        """The same for an answer in front of which the model thinks.

        Where the template knows no thoughts, those of others are shown in plain tags.
        """
        template, prompt = self._prompt(messages, tools, template_args, reasoning=True)
        thinking, text = template.thinking, template.text_ids
        if thinking is not None:
            return Reasoning(prompt, thinking.end, text(thinking.closing), own=True)
        prompt = [*prompt, *text("<think>\n")]
        return Reasoning(prompt, "</think>", text("\n</think>\n\n"), own=False)

    def _prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        template_args: Mapping[str, Any],
        *,
        reasoning: bool,
    ) -> tuple[Template, list[int]]:
        """A prompt up to where something starts, and the template that has put it."""
        for name in _RESERVED & template_args.keys():
            remedy = "that is no variable of a chat template; leave it out"
            raise InvalidArgumentError(f"template_args[{name!r}]", template_args[name], remedy)
        refused: Exception | None = None
        lost: str | None = None
        for template, plainly in self._ways(messages, tools):
            start = template.start
            if reasoning and template.thinking is not None:
                start = template.thinking.start
            thinks = not reasoning and bool(template_args.get("enable_thinking"))
            args = {**(start.on if thinks else start.off), **template_args}
            marked = Marked(messages, tools, args, template.control, template.thought)
            turns = _turns(messages, tools, self._form, plainly)
            marked_turns = _turns(marked.messages, marked.tools, self._form, plainly)
            offered, marked_offer = ((), ()) if plainly else (tools, marked.tools)
            tried: list[list[Turn]] = []
            for put in SHAPES:
                shape = put(turns)
                if shape in tried:
                    continue
                tried.append(shape)
                marked_shape = put(marked_turns)
                try:
                    text = template.render(shape, offered, args)
                    marked_text = template.render(marked_shape, marked_offer, marked.args)
                except Exception as error:  # a template may raise whatever it likes
                    refused = refused or error
                    continue
                reading = marked.read(text, marked_text, marked_shape, marked_offer)
                if reading.lost is None:
                    prompt = reading.prompt if thinks else start.completed(reading.prompt)
                    if offered:  # the model says whether it calls or talks
                        prompt = prompt.removesuffix(self._form.says)
                    ids = template.encode(prompt, reading.places)
                    return template, ids if ids[:1] == self._bos else [*self._bos, *ids]
                lost = lost or reading.lost
        why = f"leaves out {lost}" if lost else f"refuses this conversation: {refused}"
        remedy = f"the chat template of {self._name} {why}"
        raise InvalidArgumentError("messages", [m.role for m in messages], remedy) from refused

    def _ways(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> Iterator[tuple[Template, bool]]:
        """Templates to try, and whether calls and results are said plainly in them."""
        if not tools and not any(m.role == "tool" or m.extra.get("tool_calls") for m in messages):
            yield self._template, False
            return
        if self.teaches is self._form:
            yield self._tool_template, False
        yield self._template, True


def template_of(templates: Mapping[str, str], name: str, *, tools: bool = False) -> str | None:
    """The chat template for a conversation with or without tools; None for a base model.

    Args:
        templates: All templates of a model, by name.
        name: How errors call the model.
        tools: Whether there are tools.

    Raises:
        UnsupportedModelError: There are several with names, and none is the default.
    """
    if not templates:
        return None
    for use in ("tool_use", "default") if tools else ("default",):
        if use in templates:
            return templates[use]
    raise UnsupportedModelError(
        f"{name}: none of its chat templates is the default; set chat_template to one of "
        f"{', '.join(templates)}"
    )


def _turns(
    messages: Sequence[Message], tools: Sequence[Tool], form: Form, plainly: bool
) -> list[Turn]:
    if plainly:
        messages = render_tools_plainly(messages, tools, form)
    return [{**m.extra, "role": m.role, "content": m.content} for m in messages]
