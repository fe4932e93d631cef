"""A tokenizer of transformers, as the package uses one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from safe_integrations.models.tokenizer import (
    SPACE,
    Added,
    Span,
    byte_level,
    refused,
    sentencepiece,
)

TURN_ENDS: Final = (
    "<|im_end|> <|eot_id|> <|eom_id|> <|end_of_text|> <|endoftext|> <|end|> "
    "<end_of_turn> <turn|> </s> <eos>"
).split()
"""Special tokens that end a turn or a text in the model families that use them."""


class TransformersTokenizer:
    """A fast tokenizer of transformers as a `Tokenizer`.

    It is neither copied nor changed; its model (vocabulary and merges) is shared.

    Args:
        tokenizer: The tokenizer.
        name: How errors call the model.

    Raises:
        UnsupportedTokenizerError: It is no fast one, or of a kind that cannot be mapped to bytes.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is None:
            raise refused(name, "it has no fast (`tokenizers`) backend")
        self._learned, self._spelled = _piece_readers(self._backend, name)

    @cached_property
    def added(self) -> Mapping[int, Added]:
        """Tokens for control, and others that were added to those it has learned."""
        special = set(self._tokenizer.all_special_ids)
        tokens = {i: (t.content, t.special) for i, t in self._tokens.items()}
        for i in special - tokens.keys():
            tokens[i] = self._tokenizer.convert_ids_to_tokens(i), True
        return {
            i: Added(content, self._spelled(content), marked or i in special)
            for i, (content, marked) in tokens.items()
        }

    @property
    def control(self) -> Collection[str] | None:
        """Tokens besides the special ones that are for control; None where it does not say."""
        return getattr(self._tokenizer, "chat_control_tokens", None)

    @cached_property
    def bos(self) -> int | None:
        """The id that it puts in front of every text; None where there is none."""
        first = self._tokenizer("")["input_ids"][:1]
        return first[0] if first and first[0] == self._tokenizer.bos_token_id else None

    @property
    def templates(self) -> Mapping[str, str]:
        """Its chat templates by name."""
        return templates_of(self._tokenizer)

    @property
    def variables(self) -> Mapping[str, str]:
        """Special tokens, by the names that chat templates have for them."""
        tokens: Mapping[str, str] = self._tokenizer.special_tokens_map
        return tokens

    def learned(self) -> Iterator[tuple[int, bytes]]:
        """The tokens of its model as bytes."""
        for piece, i in self._backend.get_vocab(False).items():
            yield i, self._learned(piece)

    def text_encoder(self, spoken: Collection[int]) -> _TextEncoder:
        """An encoder of text that knows these of the added tokens."""
        tokens = {i: token for i, token in self._tokens.items() if i in spoken}
        return _TextEncoder(self._backend, tokens, self.name)

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt."""
        ids: list[int] = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return ids

    def locate(self, text: str, *, behind: bool) -> list[tuple[int, int, int]]:
        """The ids of a part of a prompt, with the characters that each stands for.

        Behind other text it is encoded behind a line break, which is taken off again.
        """
        line = self._located("\n") if behind else []
        tokens = self._located("\n" + text) if line else []
        if line and [i for i, *_ in tokens[: len(line)]] == [i for i, *_ in line]:
            return [(i, first - 1, last - 1) for i, first, last in tokens[len(line) :]]
        return self._located(text)

    def end_ids(self, generation_config: Any, config: Any) -> set[int]:
        """All ids that end a text: those of the tokenizer, the generation config and the config.

        A list in the generation config is its author's full list. A single id (all that a GGUF
        file can say) is often only one of them: a chat model's end of turn without its end of text,
        or the other way round. Then the special tokens of `TURN_ENDS` count too.
        """
        ids: set[int] = set()
        declared = getattr(generation_config, "eos_token_id", None)
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        for value in (
            declared,
            getattr(text_config, "eos_token_id", None),
            self._tokenizer.eos_token_id,
        ):
            several = value if isinstance(value, list | tuple) else [value]
            ids |= {int(i) for i in several if i is not None}
        if not isinstance(declared, list | tuple):
            special = {token.content: i for i, token in self.added.items() if token.special}
            # In gpt-oss <|end|> closes a message, and <|return|> the turn.
            skipped = {"<|end|>"} if "<|return|>" in special else set()
            ids |= {special[end] for end in TURN_ENDS if end in special and end not in skipped}
        return ids

    def _located(self, text: str) -> list[tuple[int, int, int]]:
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [(i, first, last) for i, (first, last) in pairs]

    @cached_property
    def _tokens(self) -> dict[int, Any]:
        tokens: dict[int, Any] = self._backend.get_added_tokens_decoder()
        return tokens


def templates_of(tokenizer: Any) -> dict[str, str]:
    """The chat templates of a tokenizer of transformers, by name."""
    known = tokenizer.chat_template or {}
    return dict(known) if isinstance(known, Mapping) else {"default": known}


class _TextEncoder:
    """A tokenizer with the model of another, and nothing that changes or adds text."""

    def __init__(self, backend: Any, spoken: Mapping[int, Any], name: str) -> None:
        from tokenizers import AddedToken, Tokenizer

        if getattr(backend.model, "dropout", None):
            raise refused(name, "it tokenises at random (BPE dropout)")
        normalizers = [n for n in _parts(backend.normalizer, name) if _keeps_text(n)]
        pre_tokenizers = [_without_prefix_space(p) for p in _parts(backend.pre_tokenizer, name)]
        shell = {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        }
        self._inner = Tokenizer.from_str(json.dumps(shell))
        self._inner.model = backend.model
        self._inner.add_tokens(
            [
                # as they are, except that they must not swallow the spaces around them
                AddedToken(t.content, single_word=t.single_word, normalized=t.normalized)
                for _, t in sorted(spoken.items())
            ]
        )
        # Without the special tokens before them, added tokens get other ids.
        pairs = ((self._inner.token_to_id(t.content), i) for i, t in spoken.items())
        self._renumbered = {theirs: ours for theirs, ours in pairs if theirs != ours}

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return [self._renumbered.get(i, i) for i in ids] if self._renumbered else ids

    def spans(self, text: str) -> list[Span]:
        spans: list[Span] = self._inner.encode(text, add_special_tokens=False).offsets
        return spans


def _keeps_text(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer only spells the same text differently."""
    spells_space = normalizer.get("pattern") == {"String": " "}
    return normalizer["type"] == "ByteLevel" or (
        normalizer["type"] == "Replace" and spells_space and normalizer["content"] == SPACE
    )


def _without_prefix_space(pre_tokenizer: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, dict[str, Any]] = {
        "ByteLevel": {"add_prefix_space": False},
        "Metaspace": {"prepend_scheme": "never"},
    }
    return pre_tokenizer | changes.get(pre_tokenizer["type"], {})


def _piece_readers(
    backend: Any, name: str
) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
    """What one piece stands for, as two functions: pieces the model has learned, and added ones."""
    decoders = list(_parts(backend.decoder, name))
    types = {d["type"] for d in decoders}
    if "ByteLevel" in types:
        return byte_level, str.encode
    if "ByteFallback" in types and getattr(backend.model, "byte_fallback", True):
        return sentencepiece, sentencepiece
    kind = type(backend.model).__name__
    raise refused(
        name,
        f"it is neither byte-level BPE nor SentencePiece with byte fallback, but {kind} with "
        f"{' + '.join(sorted(types)) or 'no'} decoder",
    )


def _parts(component: Any, name: str) -> Iterator[dict[str, Any]]:
    """The settings of a normalizer, pre-tokenizer or decoder, sequences flattened."""
    if component is None:
        return
    try:
        state = json.loads(component.__getstate__())
    except Exception:  # the bindings raise a bare Exception
        raise refused(name, f"it has a custom {type(component).__name__}") from None
    queue = [state]
    while queue:
        part = queue.pop(0)
        if part["type"] == "Sequence":
            inside = next(v for k, v in part.items() if k != "type")
            queue = [*inside, *queue]
        else:
            yield part
