"""The tokenizer of a GGUF file, as llama.cpp has it: the library's own ids, byte for byte.

What a token is for is told by the file, and set right by the library where a file is known to be
wrong. Text is told from control as everywhere: the library encodes it without control tokens, and
the space that some vocabularies put in front of every text is taken off again.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from ctypes import create_string_buffer
from functools import cached_property
from typing import Final

from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import UnknownSplittingWarning
from safe_integrations.models.llama_cpp.library import Weights
from safe_integrations.models.llama_cpp.vocabulary import (
    ADDED,
    CONTROL,
    UNKNOWN,
    Vocabulary,
)
from safe_integrations.models.table import build_token_table
from safe_integrations.models.tokenizer import SPACE, Added, Span

_VARIABLES: Final = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # as the format spells it
    "pad_token": "padding",
    "mask_token": "mask",
}
"""How templates call special tokens, and how the format does."""

_FOR_CONTROL: Final = CONTROL | UNKNOWN
_ENDS: Final = ("eos", "eot", "eom")
_SPLITTING: Final = "tokenizer.ggml.pre"
_HTML: Final = "</s>"
_TEMPLATE: Final = "tokenizer.chat_template"


class LlamaTokenizer:
    """A vocabulary of llama.cpp as a `Tokenizer`.

    Args:
        weights: The file, as the library has read it.
        name: How errors call the model.
        chat_template: A chat template instead of the file's own, or the name of one of its own.

    Raises:
        UnsupportedTokenizerError: It is of a kind that cannot be mapped to bytes.

    Warns:
        UnknownSplittingWarning: The file does not say how it splits text.
    """

    control: Collection[str] | None = None

    def __init__(self, weights: Weights, name: str, chat_template: str | None = None) -> None:
        self.name = name
        self._weights = weights
        self._vocabulary = Vocabulary(weights, name)
        if weights.value("tokenizer.ggml.model") == "gpt2" and not weights.value(_SPLITTING):
            warnings.warn(
                f"{name}: this file does not name the way in which it splits text into words "
                f"({_SPLITTING}). It is split as llama.cpp does then, so some token ids may differ "
                "from those that the model was trained with; look for a newer file",
                UnknownSplittingWarning,
                stacklevel=2,
            )
        own = _templates(weights)
        self.templates: Mapping[str, str] = own
        if chat_template is not None:
            self.templates = {"default": own.get(chat_template, chat_template)}

    @cached_property
    def added(self) -> Mapping[int, Added]:
        """Tokens for control, and others that were added to those it has learned."""
        names = ((i, self._vocabulary.names[i]) for i in self._vocabulary.added)
        return {
            i: Added(name, name.replace(SPACE, " ").encode(), self._is_special(i, name))
            for i, name in names
        }

    @cached_property
    def bos(self) -> int | None:
        """The id that it puts in front of every text; None where there is none."""
        llama, vocab = self._weights.llama, self._weights.vocab
        bos: int = llama.llama_vocab_bos(vocab)
        return bos if bos >= 0 and llama.llama_vocab_get_add_bos(vocab) else None

    @cached_property
    def variables(self) -> Mapping[str, str]:
        """Special tokens, by the names that chat templates have for them."""
        named = ((name, self._declared(key)) for name, key in _VARIABLES.items())
        return {name: self._vocabulary.name_of(i) for name, i in named if i is not None}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a text: those that the library takes for one, and those declared."""
        is_end, vocab = self._weights.llama.llama_vocab_is_eog, self._weights.vocab
        ends = {i for i, token in self.added.items() if token.special and is_end(vocab, i)}
        return frozenset(ends.union(self._declared_ends))

    def tokens(self, spoken: Collection[str] = ()) -> TokenTable:
        """The tokens as bytes; see `build_token_table`."""
        size = len(self._vocabulary.pieces)
        return build_token_table(self, end_ids=self.end_ids, vocab_size=size, spoken=spoken)

    def learned(self) -> Iterator[tuple[int, bytes]]:
        """The tokens of its model as bytes."""
        for i, piece in enumerate(self._vocabulary.pieces):
            if piece is not None:
                yield i, piece

    def text_encoder(self, spoken: Collection[int]) -> _TextEncoder:
        """An encoder of text that knows these of the added tokens."""
        return _TextEncoder(self._vocabulary, spoken)

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt."""
        return self._vocabulary.encode(prompt, control=True)

    def locate(self, text: str, *, behind: bool) -> list[tuple[int, int, int]]:
        """The ids of a part of a prompt, with the characters that each stands for."""
        vocabulary, located = self._vocabulary, list[tuple[int, int, int]]()
        for token, first, last in vocabulary.parts(text):
            if token is not None:
                located.append((token, first, last))
                continue
            part = text[first:last]
            unspaced = (behind and first == 0) or not vocabulary.spaced
            ids = vocabulary.unspaced(part) if unspaced else vocabulary.encode(part)
            spans = vocabulary.spans(part if unspaced else f" {part}", ids)
            moved = first if unspaced else first - 1
            for i, (start, end) in zip(ids, spans, strict=True):
                located.append((i, max(start + moved, first), max(end + moved, first)))
        return located

    def _is_special(self, i: int, name: str) -> bool:
        """Whether a token is for control: by the file, or by the library, which may know better.

        The library takes every `</s>` for an end. In some vocabularies, Gemma's, it is HTML.
        """
        if i in self._vocabulary.for_control or i in self._declared_ends:
            return True
        return name != _HTML and bool(self._vocabulary.kinds[i] & _FOR_CONTROL)

    @cached_property
    def _declared_ends(self) -> frozenset[int]:
        declared = (self._declared(key) for key in _ENDS)
        return frozenset(i for i in declared if i is not None)

    def _declared(self, key: str) -> int | None:
        """A special token that the file names; None where it names none that there is."""
        value = self._weights.value(f"tokenizer.ggml.{key}_token_id")
        i = -1 if value is None else int(value)
        return i if 0 <= i < len(self._vocabulary.pieces) else None


class _TextEncoder:
    """Text to ids, where only what is spoken is an added token."""

    def __init__(self, vocabulary: Vocabulary, spoken: Collection[int]) -> None:
        self._vocabulary = vocabulary
        # What the library takes for control is found here, and where it would put a space behind
        # what it finds, all of it.
        here = ADDED if vocabulary.spaced else _FOR_CONTROL
        self._ids = {vocabulary.names[i]: i for i in spoken if vocabulary.kinds[i] & here}
        longest_first = sorted(self._ids, key=len, reverse=True)
        cuts = [re.escape(name) for name in longest_first]
        if not vocabulary.byte_level:
            cuts.append(f"{SPACE}+")  # it would be a space, and join what stands beside it
        self._pattern = re.compile(f"({'|'.join(cuts)})") if cuts else None

    def __call__(self, text: str) -> list[int]:
        return [i for part in self._parts(text) for i in self._encoded(part)]

    def spans(self, text: str) -> list[Span]:
        spans, at = list[Span](), 0
        for part in self._parts(text):
            found = self._vocabulary.spans(part, self._encoded(part))
            spans += [(at + first, at + last) for first, last in found]
            at += len(part)
        return spans

    def _parts(self, text: str) -> list[str]:
        if self._pattern is None:
            return [text]
        return [part for part in self._pattern.split(text) if part]

    def _encoded(self, part: str) -> list[int]:
        token = self._ids.get(part)
        return self._vocabulary.unspaced(part) if token is None else [token]


def _templates(weights: Weights) -> dict[str, str]:
    """The chat templates of a file, by name."""
    found = {}
    for key in _keys(weights):
        name = key.removeprefix(_TEMPLATE)
        if name != key and (not name or name[0] == "."):
            found[name[1:] or "default"] = weights.value(key) or ""
    return {name: template for name, template in found.items() if template}


def _keys(weights: Weights) -> Iterator[str]:
    """The names of what a file tells."""
    llama, pointer = weights.llama, weights.pointer
    for n in range(llama.llama_model_meta_count(pointer)):
        size = llama.llama_model_meta_key_by_index(pointer, n, None, 0)
        buffer = create_string_buffer(size + 1)
        llama.llama_model_meta_key_by_index(pointer, n, buffer, size + 1)
        yield buffer.value.decode(errors="replace")
