"""What members have in common, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Generic, NoReturn, Self, TypeVar

from safe_integrations.calls.form import Form
from safe_integrations.config import Tool
from safe_integrations.engine.model import Limits, Reasoning
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import ModelError
from safe_integrations.messages import Message
from safe_integrations.models.fork import check_process
from safe_integrations.models.rendering import Render, Renderer
from safe_integrations.models.table import tags_of
from safe_integrations.models.tokenizer import Tokenizer

F = TypeVar("F")

TableOf = Callable[[frozenset[str]], TokenTable]
"""The tokens of a model, where some special tokens are text (see `tags_of`)."""

_NONE: Final = Limits()


def forms_of(
    tokenizer: Tokenizer, render: Renderer, table: TableOf
) -> Callable[[Form], tuple[TokenTable, Render]]:
    """Tokens and prompts of a model where calls have a form."""

    def in_form(form: Form) -> tuple[TokenTable, Render]:
        texts = (*form.texts, *render.tags_of_thinking)
        return table(tags_of(tokenizer, texts)), render.writing(form)

    return in_form


class BaseMember(Generic[F]):
    """Tokens and prompts of a model; neither pickled nor taken along by a fork.

    Args:
        tokens: Its tokens as bytes.
        render: Turns messages into prompt ids.
        fold_of: Makes what maps its logits to canonical ids.
        name: How errors and statistics call it.
        context_window: Tokens it can hold.
        teaches: The form of a call that its chat template teaches; None where it is none we know.
        in_form: `tokens` and `render` where calls have a form. None where none changes them.
        limits: What it cannot do.
    """

    def __init__(
        self,
        tokens: TokenTable,
        render: Render,
        fold_of: Callable[[TokenTable], F],
        *,
        name: str,
        context_window: int,
        teaches: Form | None,
        in_form: Callable[[Form], tuple[TokenTable, Render]] | None,
        limits: Limits = _NONE,
    ) -> None:
        self.name = name
        self.teaches = teaches
        self.tokens = tokens
        self.context_window = context_window
        self.fold: Final = fold_of(tokens)
        self.limits: Final = limits
        self._fold_of = fold_of
        self._render = render
        self._in_form = in_form

    def __reduce__(self) -> NoReturn:
        """Refuses to be pickled, which would send the weights along."""
        raise ModelError(
            f"{self.name}: a loaded model cannot be pickled or copied; name it, and each process "
            "will load it"
        )

    def writing(self, form: Form) -> Self:
        """This member where calls have a form; model and caches are the same."""
        if self._in_form is None:
            return self
        tokens, render = self._in_form(form)
        other = object.__new__(type(self))
        vars(other).update(vars(self), tokens=tokens, fold=self._fold_of(tokens), _render=render)
        return other

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """The prompt's token ids."""
        check_process(self.name)
        return self._render(messages, tools, template_args)

    def reason(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> Reasoning:
        """The prompt in front of the model's reasoning, and how that ends."""
        check_process(self.name)
        return self._render.reason(messages, tools, template_args)
