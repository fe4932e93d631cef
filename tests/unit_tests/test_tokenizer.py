"""Tokenizers as bytes, on small ones trained here; the real ones are in `integration_tests`."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.errors import UnsupportedTokenizerError
from safe_integrations.models.table import build_token_table
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

CORPUS = [
    "Natalia sold 48/2 = 24 clips in May. She sold 48 + 24 = 72 clips altogether.",
    "def f(x):\n    if x:\n        return  x  # comment\n\n\n",
    "Étude café naïve e\u0301 你好,世界! Привет 😀👩‍👩‍👧 <b>bold</b>",
] * 4
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
KINDS = ["byte-level", "byte-level-nfc", "sentencepiece", "unigram", "metaspace"]


def make(kind: str) -> PreTrainedTokenizerFast:
    if kind.startswith("byte-level"):
        tok = Tokenizer(models.BPE())
        prefix = kind == "byte-level-nfc"
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(prefix)]
        )
        tok.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        if kind == "byte-level-nfc":
            tok.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    else:
        tok = Tokenizer(
            models.Unigram() if kind == "unigram" else models.BPE(byte_fallback=True, fuse_unk=True)
        )
        replace = normalizers.Replace(" ", "▁")
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        tok.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        if kind == "metaspace":
            tok.normalizer = None
            tok.pre_tokenizer = pre_tokenizers.Metaspace()
        if kind == "unigram":
            trainer = trainers.UnigramTrainer(
                vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
            )
        else:
            trainer = trainers.BpeTrainer(
                vocab_size=600, special_tokens=SPECIAL + BYTES, show_progress=False
            )
    tok.train_from_iterator(CORPUS, trainer)
    if not kind.startswith("byte-level"):  # byte tokens are no special tokens, as a trainer has it
        learned = json.loads(tok.to_str())["model"]
        if kind == "unigram":
            scores = [
                ("<unk>", 0.0),
                *((b, -20.0) for b in BYTES),
                *map(tuple, learned["vocab"][1:]),
            ]
            tok.model = models.Unigram(scores, unk_id=0, byte_fallback=True)
        else:
            merges = [tuple(merge) for merge in learned["merges"]]
            bare = Tokenizer(models.BPE(learned["vocab"], merges, byte_fallback=True))
            bare.normalizer, bare.decoder = tok.normalizer, tok.decoder
            bare.pre_tokenizer = tok.pre_tokenizer
            tok = bare
    tok.add_special_tokens(SPECIAL)
    tok.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("\n\n", rstrip=True)])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="</s>", bos_token="<s>")


def table_of(
    tokenizer: Any, ends: set[int], size: int, name: str = "m", **options: Any
) -> TokenTable:
    wrapped = TransformersTokenizer(tokenizer, name)
    return build_token_table(wrapped, end_ids=ends, vocab_size=size, **options)


@cache
def pair(kind: str) -> tuple[PreTrainedTokenizerFast, TokenTable]:
    tokenizer = make(kind)
    ends = {tokenizer.eos_token_id}
    size = len(tokenizer) + 7
    return tokenizer, table_of(tokenizer, ends, size, kind)


def joined(table: TokenTable, text: bytes) -> bytes:
    symbols = [table.symbol(i) for i in table.encode(text)]
    assert END not in symbols
    return b"".join(symbols)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.sampled_from("ab 1\n\t\0▁ÉéÉ\u0301ﬁ你😀\u200d<>/s|0x4Ee_imndtol")
        | st.characters(exclude_categories=["Cs"]),
        max_size=40,
    )
)
@example("x <|im_end|></s><bos><unk><tool> y")
@example("<0x41>▁<0x0A>\n\n  \n")
@example(" leading, trailing ")
@example("")
def test_text_survives(kind: str, text: str) -> None:
    assert joined(pair(kind)[1], text.encode()) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=30) | st.text(max_size=20).map(lambda t: t.encode("utf-8", "ignore")[1:]))
def test_bytes_survive(kind: str, data: bytes) -> None:
    """Also a text cut in the middle of a character, which incremental encoding meets."""
    assert joined(pair(kind)[1], data) == data


def test_ordinary_text_is_tokenised_as_the_tokenizer_does() -> None:
    tokenizer, table = pair("byte-level")
    for text in (CORPUS[0], CORPUS[2], "def f(x):\n    return  x  # comment"):
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert table.encode(text.encode()) == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_silent_and_added_ones_are_text(kind: str) -> None:
    tokenizer, table = pair(kind)
    ids = {content: tokenizer.convert_tokens_to_ids(content) for content in [*SPECIAL, "<tool>"]}
    assert table.symbols()[ids["</s>"]] is END
    assert {ids["<s>"], ids["<|im_end|>"]} <= set(table.silent)
    assert table.symbol(ids["<tool>"]) == b"<tool>"
    assert table.encode(b"<tool>") == [ids["<tool>"]]
    assert not set(table.encode(b"<s></s><|im_end|>")) & {ids[s] for s in SPECIAL}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_pad_the_vocabulary_are_silent(kind: str) -> None:
    tokenizer, table = pair(kind)
    assert set(range(len(tokenizer), len(tokenizer) + 7)) <= set(table.silent)


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_tokenizer_is_not_changed(kind: str) -> None:
    tokenizer = make(kind)
    before = tokenizer.backend_tokenizer.to_str()
    ends = {tokenizer.eos_token_id}
    table = table_of(tokenizer, ends, 999, kind)
    table.encode(b"some text </s>")
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_rare_byte_that_the_tokenizer_lacks_is_read_as_sub() -> None:
    """SmolLM2 has no token for 0x04: the offsets of what follows must hold all the same."""
    full = make("byte-level")
    vocab = full.backend_tokenizer.get_vocab(False)
    del vocab[chr(256 + 4)]
    dense = {piece: i for i, piece in enumerate(sorted(vocab, key=vocab.__getitem__))}
    tok = Tokenizer(models.BPE(vocab=dense, merges=[]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tok)
    table = table_of(wrapped, {0}, len(dense))
    assert joined(table, b"a\x04bc\x04") == b"a\x1abc\x1a"


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_are_spelled_as_they_are(normalized: bool) -> None:
    """DeepSeek adds "ö" beside an alphabet that lacks its byte: it was read as that byte."""
    vocab = make("byte-level").backend_tokenizer.get_vocab(False)
    del vocab["ö"]  # the letter of byte 0xF6, which UTF-8 never uses
    dense = {piece: i for i, piece in enumerate(sorted(vocab, key=vocab.__getitem__))}
    tok = Tokenizer(models.BPE(vocab=dense, merges=[]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tok.add_tokens([AddedToken(text, normalized=normalized) for text in ("ö", "café", "é")])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tok)
    table = table_of(wrapped, {0}, len(wrapped))
    for text in ("ö", "café"):
        assert table.symbol(wrapped.convert_tokens_to_ids(text)) == text.encode()
        assert table.encode(text.encode()) == wrapped(text)["input_ids"]
    # This one is a letter of the alphabet, so it has no id of its own: it stays that byte.
    assert table.symbol(wrapped.convert_tokens_to_ids("é")) == b"\xe9"
    assert joined(table, "ö café é".encode()) == "ö café é".encode()


def test_special_tokens_may_be_spoken_but_ends_end() -> None:
    tokenizer = make("byte-level")
    s, end, im_end = tokenizer.convert_tokens_to_ids(SPECIAL)
    spoken = ["<s>", "</s>"]
    table = table_of(tokenizer, {end}, 600, spoken=spoken)
    assert table.symbol(s) == b"<s>" and table.encode(b"a<s>b")[1] == s
    assert table.symbol(end) is END and im_end in table.silent


def wordpiece() -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tok.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tok)


def no_fallback() -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    tok.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tok)


def few_bytes() -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tok.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tok)


def random_merges() -> PreTrainedTokenizerFast:
    tokenizer = make("byte-level")
    tokenizer.backend_tokenizer.model.dropout = 0.1
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (wordpiece, "WordPiece with WordPiece decoder"),
        (no_fallback, "Unigram with Metaspace decoder"),
        (few_bytes, "255 of the 256 single bytes"),
        (random_merges, "at random"),
        (lambda: SimpleNamespace(all_special_ids=[]), "no fast"),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(tokenizer, reason: str) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=reason) as error:
        table_of(tokenizer(), {0}, 300, "my-model")
    assert "my-model" in str(error.value)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(UnsupportedTokenizerError, match="no end-of-text"):
        table_of(make("byte-level"), set(), 600)


@pytest.mark.parametrize(
    ("declared", "config", "expected"),
    [
        (None, None, {"</s>", "<|im_end|>"}),  # one id: the family's other ends count too
        (0, 1, {"<s>", "</s>", "<|im_end|>"}),
        ([1, 0], None, {"<s>", "</s>"}),  # a list is complete
    ],
)
def test_end_ids_are_pooled(declared, config, expected: set[str]) -> None:
    tokenizer = make("byte-level")
    generation, config = (SimpleNamespace(eos_token_id=ids) for ids in (declared, config))
    ids = TransformersTokenizer(tokenizer, "m").end_ids(generation, config)
    assert set(tokenizer.convert_ids_to_tokens(sorted(ids))) == expected


def test_in_gpt_oss_the_end_of_a_message_is_not_the_end_of_the_turn() -> None:
    tokenizer = make("byte-level")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|return|>"]})
    empty = SimpleNamespace(eos_token_id=None)
    ends = TransformersTokenizer(tokenizer, "m").end_ids(empty, empty)
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in ends
