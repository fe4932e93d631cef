"""A Hugging Face tokenizer as a `TokenTable`: its tokens as bytes, its encoder on bytes.

Two families can be mapped exactly: byte-level BPE (every token is spelled in GPT-2's alphabet of
256 letters) and SentencePiece with byte fallback (`▁` is a space, `<0xNN>` a byte). The encoder is
the tokenizer's own, less everything that changes text (normalizers, prefix space, BOS) and less
its special tokens: generated text is only text, whatever it spells. The special tokens that mark a
tool call for the model are text as well: without them it could not write one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import UnsupportedTokenizerError

SPACE: Final = "\u2581"
"""How SentencePiece writes a space."""

TURN_ENDS: Final = (
    "<|im_end|> <|eot_id|> <|eom_id|> <|end_of_text|> <|endoftext|> <|end|> "
    "<end_of_turn> <turn|> </s> <eos>"
).split()
"""Special tokens that end a turn or a text in the model families that use them."""

_RARE: Final = frozenset(
    [*range(0x01, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0xC0, 0xC1, 0xF1, 0xF2]
    + [*range(0xF5, 0x100)]
)
"""Bytes a tokenizer may lack: control characters, unassigned planes, and what UTF-8 never uses.

SmolLM2 lacks 21 of them. Such a byte is read as SUB, the control character made for that: one byte
for one byte, so every offset holds, and the shared text itself is not touched.
"""

_SUB: Final = b"\x1a"
_SILENT: Final = b"\xff"  # no UTF-8 text holds it, so a silent token never matches one
_SAMPLE: Final = "Hello world,\n  1 + 12 = 13.\tÉtude 你好 😀"


def build_token_table(
    tokenizer: Any,
    *,
    end_ids: Collection[int],
    vocab_size: int,
    name: str,
    spoken: Collection[str] = (),
) -> TokenTable:
    """Gives every token of a tokenizer its bytes.

    The tokenizer is neither copied nor changed; its model (vocabulary and merges) is shared.

    Args:
        tokenizer: A fast tokenizer of transformers.
        end_ids: The ids that end a text (see `end_ids_of`).
        vocab_size: Rows of the model's output, padding included.
        name: How errors call the model.
        spoken: Special tokens that are text all the same (see `tags_of`); those that end a text do
            so first of all.

    Raises:
        UnsupportedTokenizerError: The tokens cannot be mapped to bytes one by one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(name, "it has no fast (`tokenizers`) backend")
    ends = {i for i in end_ids if 0 <= i < vocab_size}
    if not ends:
        raise _refused(name, "it declares no end-of-text token")
    learned_bytes, added_bytes = _piece_readers(backend, name)
    added = backend.get_added_tokens_decoder()
    silent = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    silent -= {i for i, token in added.items() if token.content in spoken}
    silent |= ends
    rows: list[bytes | None] = [None] * vocab_size
    # What the model has learned comes last: an "é" that is its letter for a byte, and was added,
    # too, is that byte.
    kinds = ((added_bytes, ((t.content, i) for i, t in added.items())),
             (learned_bytes, backend.get_vocab(False).items()))  # fmt: skip
    for bytes_of, pieces in kinds:
        for piece, i in pieces:
            if i < vocab_size and i not in silent:
                rows[i] = bytes_of(piece)
    byte_ids = _byte_ids(rows, name)
    texts = {t.content: (i, t) for i, t in added.items() if i not in silent}
    encoder = _Encoder(_text_only(backend, texts, name), texts, rows, byte_ids)
    if not encoder.is_exact(_SAMPLE):
        raise _refused(name, "its tokens do not spell the text they are made from")
    return TokenTable(rows, ends, encoder)


def _byte_ids(rows: list[bytes | None], name: str) -> list[int]:
    ids = {row[0]: i for i, row in enumerate(rows) if row is not None and len(row) == 1}
    missing = {b for b in range(256) if b not in ids}
    if missing - _RARE or (missing and _SUB[0] in missing):
        raise _refused(name, f"{len(missing)} of the 256 single bytes are no tokens of it")
    return [ids.get(b, ids.get(_SUB[0], -1)) for b in range(256)]


def tags_of(tokenizer: Any, texts: Sequence[str]) -> frozenset[str]:
    """Special tokens of a tokenizer that some texts are written with."""
    special = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    return frozenset(tag for tag in special if tag and any(tag in text for text in texts))


def end_ids_of(tokenizer: Any, generation_config: Any, config: Any) -> set[int]:
    """All ids that end a text: those of the tokenizer, the generation config and the config.

    A list in the generation config is its author's full list. A single id (all that a GGUF file
    can say) is often only one of them: a chat model's end of turn without its end of text, or the
    other way round. Then the special tokens of `TURN_ENDS` count too.
    """
    ids: set[int] = set()
    declared = getattr(generation_config, "eos_token_id", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for value in (declared, getattr(text_config, "eos_token_id", None), tokenizer.eos_token_id):
        several = value if isinstance(value, list | tuple) else [value]
        ids |= {int(i) for i in several if i is not None}
    if not isinstance(declared, list | tuple):
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        # In gpt-oss <|end|> closes a message, and <|return|> the turn.
        skipped = {"<|end|>"} if "<|return|>" in special else set()
        ids |= {special[end] for end in TURN_ENDS if end in special and end not in skipped}
    return ids


class _Encoder:
    """Bytes to token ids, such that the tokens' bytes always join to the argument.

    The one exception is a byte that the tokenizer lacks (see `_RARE`).
    """

    def __init__(
        self,
        inner: Any,
        added: dict[str, tuple[int, Any]],
        rows: list[bytes | None],
        byte_ids: list[int],
    ) -> None:
        self._inner = inner
        self._rows = [_SILENT if row is None else row for row in rows]
        self._byte_ids = byte_ids
        # Without the special tokens before them, added tokens get other ids in `inner`.
        pairs = ((inner.token_to_id(content), i) for content, (i, _) in added.items())
        self._renumbered = {ours: theirs for ours, theirs in pairs if ours != theirs}

    def __call__(self, text: bytes) -> list[int]:
        try:
            return self._encode(text.decode())
        except UnicodeDecodeError:
            pass
        ids: list[int] = []
        for part in re.split("([\udc80-\udcff]+)", text.decode(errors="surrogateescape")):
            if part and "\udc80" <= part[0] <= "\udcff":
                ids += self._bytes(part.encode(errors="surrogateescape"))
            elif part:
                ids += self._encode(part)
        return ids

    def is_exact(self, text: str) -> bool:
        """Whether the inner encoder reproduces a text without repair."""
        return self._join(self._run(text)[0]) == text.encode()

    def _encode(self, text: str) -> list[int]:
        ids, encoding = self._run(text)
        data = text.encode()
        return ids if self._join(ids) == data else self._repair(text, data, ids, encoding.offsets)

    def _run(self, text: str) -> tuple[list[int], Any]:
        encoding = self._inner.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._renumbered:
            ids = [self._renumbered.get(i, i) for i in ids]
        return ids, encoding

    def _repair(
        self, text: str, data: bytes, ids: list[int], spans: list[tuple[int, int]]
    ) -> list[int]:
        """Spells the characters whose token has other bytes than they have.

        A literal `▁` comes back as a space; a literal `<0x41>` or `</s>` may come back as the
        token of that name; a character that the tokenizer lacks is dropped.
        """
        kept: list[int] = []
        at = 0
        offsets = [0, *accumulate(len(char.encode()) for char in text)]
        for i, (first, last) in zip(ids, spans, strict=True):
            start, end = offsets[first], offsets[last]
            if start > at:  # characters without any token
                kept += self._spell(data[at:start])
                at = start
            row = self._rows[i]
            if data.startswith(row, at):
                kept.append(i)
                at += len(row)
            elif end > at:
                kept += self._spell(data[at:end])
                at = end
        kept += self._spell(data[at:])
        return kept if len(self._join(kept)) == len(data) else self._spell(data)

    def _spell(self, data: bytes) -> list[int]:
        """One character at a time; bytes where the character is no token."""
        ids: list[int] = []
        for char in data.decode(errors="surrogateescape"):
            alone = char.encode(errors="surrogateescape")
            own = [] if "\udc80" <= char <= "\udcff" else self._run(char)[0]
            ids += own if own and self._join(own) == alone else self._bytes(alone)
        return ids

    def _bytes(self, data: bytes) -> list[int]:
        return [self._byte_ids[b] for b in data]

    def _join(self, ids: list[int]) -> bytes:
        rows = self._rows
        return b"".join([rows[i] for i in ids])


def _text_only(backend: Any, added: dict[str, tuple[int, Any]], name: str) -> Any:
    """A tokenizer with the model of `backend`, and nothing that changes or adds text."""
    from tokenizers import AddedToken, Tokenizer

    if getattr(backend.model, "dropout", None):
        raise _refused(name, "it tokenises at random (BPE dropout)")
    normalizers = [n for n in _parts(backend.normalizer, name) if _keeps_text(n)]
    pre_tokenizers = [_without_prefix_space(p) for p in _parts(backend.pre_tokenizer, name)]
    shell = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    inner = Tokenizer.from_str(json.dumps(shell))
    inner.model = backend.model
    inner.add_tokens(
        [
            # as they are, except that they must not swallow the spaces around them
            AddedToken(content, single_word=t.single_word, normalized=t.normalized)
            for content, (_, t) in sorted(added.items(), key=lambda item: item[1][0])
        ]
    )
    return inner


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
        return _byte_level_reader(), str.encode
    if "ByteFallback" in types and getattr(backend.model, "byte_fallback", True):
        return _sentencepiece_piece, _sentencepiece_piece
    kind = type(backend.model).__name__
    raise _refused(
        name,
        f"it is neither byte-level BPE nor SentencePiece with byte fallback, but {kind} with "
        f"{' + '.join(sorted(types)) or 'no'} decoder",
    )


def _sentencepiece_piece(piece: str) -> bytes:
    if len(piece) == 6 and re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def _byte_level_reader() -> Callable[[str], bytes]:
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}

    def read(piece: str) -> bytes:
        try:
            return bytes([byte_of[char] for char in piece])
        except KeyError:  # not in the alphabet: spelled as it is
            return piece.encode()

    return read


def _parts(component: Any, name: str) -> Iterator[dict[str, Any]]:
    """The settings of a normalizer, pre-tokenizer or decoder, sequences flattened."""
    if component is None:
        return
    try:
        state = json.loads(component.__getstate__())
    except Exception:  # the bindings raise a bare Exception
        raise _refused(name, f"it has a custom {type(component).__name__}") from None
    queue = [state]
    while queue:
        part = queue.pop(0)
        if part["type"] == "Sequence":
            inside = next(v for k, v in part.items() if k != "type")
            queue = [*inside, *queue]
        else:
            yield part


def _refused(name: str, reason: str) -> UnsupportedTokenizerError:
    return UnsupportedTokenizerError(
        f"{name}: the tokenizer cannot be mapped to bytes: {reason}. Use a model with a byte-level "
        "BPE tokenizer (GPT-2, Llama 3, Qwen, ...) or SentencePiece with byte fallback (Gemma, ...)"
    )
