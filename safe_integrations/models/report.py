"""What can be known of a model without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass

from safe_integrations.calls.form import Form
from safe_integrations.engine.tokens import TokenTable


@dataclass(frozen=True)
class ModelReport:
    """One model, as far as it can be known without loading it.

    Attributes:
        name: What it was asked for by.
        problem: Why it cannot be used; None where it can.
        where: Folder, GGUF file or hub id that it would be loaded from.
        dtype: Type that its weights will have; the kind of most of them in a GGUF file.
        weight_bytes: Memory for its weights; None where they are not on this machine yet, 0 where
            a server holds them.
        kv_bytes: Memory for the cache of 1,000 tokens.
        context_window: Tokens it can hold.
        tokens: Its tokens as bytes.
        teaches: The form of a tool call that its chat template teaches; None where it is none we
            know.
        takes_turns: Why answers that are made at the same time cannot share its forward passes;
            None where they can.
    """

    name: str
    problem: str | None = None
    where: str | None = None
    dtype: str | None = None
    weight_bytes: int | None = None
    kv_bytes: int | None = None
    context_window: int | None = None
    tokens: TokenTable | None = None
    teaches: Form | None = None
    takes_turns: str | None = None
