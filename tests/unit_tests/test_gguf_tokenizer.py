"""Tokenizers of GGUF files: the tokens that the model was trained with, or a warning."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import gguf_files
import pytest
from gguf import TokenType
from toy_models import renderer

from benchmarks import vocabularies
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import ModelLoadError, UnknownSplittingWarning
from safe_integrations.messages import Message
from safe_integrations.models.spec import ModelSpec
from safe_integrations.models.table import build_token_table
from safe_integrations.models.transformers.gguf_tokenizer import read_tokenizer
from safe_integrations.models.transformers.load import load_model, look_at
from safe_integrations.models.transformers.splitting import SPLITTINGS
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

TEXT = "We'LL\n\n12345 x½=+ fooBar/\n中e\u0301 "
END = {"<end>": TokenType.CONTROL}

WORDS = {
    "gpt-2 phi-2 mpt olmo": "We ' LL N N 12345 _x ½ =+ _fooBar / N 中e \u0301 _",
    "starcoder refact command-r smollm minerva-7b": (
        "We ' LL NN 1 2 3 4 5 _x ½ =+ _fooBar / N 中e \u0301 _"
    ),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe": (
        "We 'LL NN 123 45 _x ½ =+ _fooBar /N 中e \u0301 _"
    ),
    "qwen2 deepseek-r1-qwen megrez stablelm2": (
        "We 'LL NN 1 2 3 4 5 _x ½ =+ _fooBar /N 中e \u0301 _"
    ),
    "qwen35": "We 'LL NN 1 2 3 4 5 _x ½ =+ _fooBar /N 中e\u0301 _",
    "tekken": "We 'LL NN 1 2 3 4 5 _x ½ =+ _foo Bar /N 中e\u0301 _",
    "gpt-4o minimax-m2": "We'LL NN 123 45 _x ½ =+ _foo Bar /N 中e\u0301 _",
    "falcon": "We ' LL N N 123 45 _x ½ =+ _fooBar / N 中e \u0301 _",
    "deepseek-coder": "We ' LL N N 1 2 3 4 5 _x ½ =+ _fooBar / N 中 e \u0301_",
    "deepseek-llm": "We ' LL N N 1 2 3 4 5 _x ½ =+ _fooBar / N 中 e \u0301 _",
}
"""Words of `TEXT` by kind: `_` is a space, N the end of a line."""


def words(kinds: str) -> list[str]:
    return [word.replace("_", " ").replace("N", "\n") for word in WORDS[kinds].split()]


def table_of(tokenizer: Any) -> TokenTable:
    size = max(tokenizer.get_vocab().values()) + 1
    ends = [tokenizer.eos_token_id]
    wrapped = TransformersTokenizer(tokenizer, "toy")
    return build_token_table(wrapped, end_ids=ends, vocab_size=size)


def tokenised(tokenizer: Any, text: str = TEXT) -> list[str]:
    """A text's tokens, and that prompt and answer are tokenised alike."""
    table = table_of(tokenizer)
    ids = table.encode(text.encode())
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    return [table.symbol(i).decode(errors="replace") for i in ids]


@pytest.fixture
def toy(tmp_path: Path) -> Any:
    """Writes a vocabulary that joins whatever splitting leaves together."""

    def write(**settings: Any) -> Path:
        tokens, merges = gguf_files.greedy(TEXT)
        options = {"added": END} | settings
        return gguf_files.byte_level(tmp_path / "toy.gguf", tokens, merges, **options)

    return write


@pytest.mark.parametrize(("kinds", "kind"), [(kinds, k) for kinds in WORDS for k in kinds.split()])
def test_text_is_split_as_the_file_says(toy: Any, kinds: str, kind: str) -> None:
    tokenizer, unknown = read_tokenizer(toy(pre=kind))
    assert tokenised(tokenizer) == words(kinds)
    assert unknown is None


def test_every_kind_is_tried_and_shows() -> None:
    assert {kind for kinds in WORDS for kind in kinds.split()} == set(SPLITTINGS)
    assert len(set(WORDS.values())) == len(WORDS)


@pytest.mark.parametrize("kind", SPLITTINGS)
def test_a_word_that_is_a_token_is_one_only_where_merges_are_ignored(
    tmp_path: Path, kind: str
) -> None:
    """Llama 3 has tokens like `Việt` that its merges never make."""
    tokens, merges = [*gguf_files.ALPHABET.values(), "ab", "abc"], ["a b"]
    path = gguf_files.byte_level(tmp_path / "toy.gguf", tokens, merges, added=END, pre=kind)
    whole = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 tekken".split()
    assert tokenised(read_tokenizer(path)[0], "abc") == (["abc"] if kind in whole else ["ab", "c"])


@pytest.mark.parametrize(
    ("settings", "begins"),
    [
        ({"pre": "llama-bpe"}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"pre": "qwen2"}, False),
        ({"pre": "qwen2", "add_bos_token": True}, True),
    ],
)
def test_text_begins_with_bos_where_the_file_or_its_kind_says(
    toy: Any, settings: dict[str, Any], begins: bool
) -> None:
    added = {"<begin>": TokenType.CONTROL, **END}
    bos = len(gguf_files.greedy(TEXT)[0])
    tokenizer, _ = read_tokenizer(toy(added=added, bos_token_id=bos, **settings))
    assert tokenizer("We")["input_ids"][:1] == ([bos] if begins else tokenizer.encode("We"))


def test_added_tokens_keep_their_ids_and_their_letters(tmp_path: Path) -> None:
    """DeepSeek's control tokens are spelled with `｜`, GPT-NeoX adds runs of spaces, others an õ.

    `õ` is a letter of the byte alphabet as well: as an added token it is that letter.
    """
    added = {
        "<｜begin▁of▁text｜>": TokenType.CONTROL,
        "   ": TokenType.USER_DEFINED,
        "õ": TokenType.USER_DEFINED,
        **END,
    }
    learned = [letter for letter in gguf_files.ALPHABET.values() if letter != "õ"] + ["ab"]
    first = len(learned)
    settings = {"added": added, "bos_token_id": first, "pre": "mpt"}
    path = gguf_files.byte_level(tmp_path / "toy.gguf", learned, ["a b"], **settings)
    tokenizer, _ = read_tokenizer(path)
    assert tokenizer.convert_ids_to_tokens(range(first, first + 4)) == list(added)
    assert len(tokenizer) == first + 4
    assert tokenizer.bos_token_id == first
    table = table_of(tokenizer)
    assert table.encode("x   õ".encode()) == [table.id_of(b"x"), first + 1, first + 2]
    assert table.symbol(first + 2) == "õ".encode()
    assert first in table.silent


def test_an_added_token_may_be_one_that_was_learned(tmp_path: Path) -> None:
    letters = list(gguf_files.ALPHABET.values())
    added = {"ab": TokenType.USER_DEFINED, **END}
    path = gguf_files.byte_level(
        tmp_path / "toy.gguf", letters, ["a b"], added=added, pre="deepseek-coder"
    )
    assert tokenised(read_tokenizer(path)[0], "xab") == ["x", "ab"]


def test_a_token_that_is_there_twice_moves_no_other(tmp_path: Path) -> None:
    tokens = [*gguf_files.ALPHABET.values(), "ab", "ab"]
    path = gguf_files.byte_level(tmp_path / "toy.gguf", tokens, ["a b"], added=END, pre="gpt-2")
    tokenizer, _ = read_tokenizer(path)
    assert tokenizer.eos_token_id == len(tokens)
    assert tokenised(tokenizer, "xab") == ["x", "ab"]


def test_a_file_without_merges_is_refused(tmp_path: Path) -> None:
    path = gguf_files.byte_level(
        tmp_path / "toy.gguf", list(gguf_files.ALPHABET.values()), [], added=END, pre="gpt-2"
    )
    with pytest.raises(ModelLoadError, match="toy.gguf.*tokenizer.ggml.merges"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    ("settings", "text", "pieces"),
    [
        ({}, " a</s>a", "<s> _ _a </s> _a"),
        ({"add_space_prefix": True}, "a", "<s> _a"),
        ({"add_space_prefix": False}, " a</s>a", "<s> _a </s> a"),
        ({"add_space_prefix": False}, "a", "<s> a"),
    ],
)
def test_sentencepiece_puts_a_space_before_text(
    tmp_path: Path, settings: dict[str, Any], text: str, pieces: str
) -> None:
    """Also before a space, and after each control token, as Llama 2 was trained."""
    tokenizer, unknown = read_tokenizer(
        gguf_files.sentencepiece(tmp_path / "spm.gguf", ["\u2581", "a", "\u2581a"], **settings)
    )
    found = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert found == [piece.replace("_", "\u2581") for piece in pieces.split()]
    assert unknown is None
    table = table_of(tokenizer)
    assert [table.symbol(i) for i in table.encode(b"a a")] == [b"a", b" a"]


@pytest.mark.parametrize(
    ("settings", "named"), [({"pre": "new-kind"}, "new-kind"), ({}, "does not name")]
)
def test_an_unknown_kind_is_warned_of_each_time(
    toy: Any, tmp_path: Path, settings: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the file has been converted before: perhaps by somebody who did not look."""
    monkeypatch.setenv("SAFE_INTEGRATIONS_CACHE", str(tmp_path / "cache"))
    spec = ModelSpec(source=str(toy(weights=True, **settings)), device="cpu")
    for _ in range(2):
        with pytest.warns(UnknownSplittingWarning, match=f"toy.gguf.*{named}.*ids may differ"):
            _, _, _, tokenizer = look_at(spec, lambda _: None)
        assert tokenised(tokenizer) == words("gpt-2 phi-2 mpt olmo")


def test_the_loaded_model_has_the_files_tokenizer(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' class for this architecture splits as Qwen2 does, whatever it reads."""
    monkeypatch.setenv("SAFE_INTEGRATIONS_CACHE", str(tmp_path / "cache"))
    path = toy(architecture="qwen2", pre="tekken", weights=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = load_model(ModelSpec(source=str(path), device="cpu")).tokenizer
    assert tokenised(tokenizer) == words("tekken")
    said = renderer(tokenizer)([Message(role="user", content=TEXT)])
    assert tokenizer.decode(said) == f"User:\n{TEXT}\n\nAssistant:\n"


def test_the_report_compares_with_the_ids_of_the_original(toy: Any, tmp_path: Path) -> None:
    """One text in two gets other ids here; its bytes are there all the same."""
    path = toy(pre="falcon").rename(tmp_path / "ggml-vocab-falcon.gguf")
    tokenizer, _ = read_tokenizer(path)
    right = " ".join(map(str, tokenizer("We")["input_ids"]))
    path.with_suffix(".gguf.inp").write_text("We\n__ggml_vocab_test__\nWe\n__ggml_vocab_test__\n")
    path.with_suffix(".gguf.out").write_text(f" {right}\n {right} 0\n")
    gguf_files.write(tmp_path / "ggml-vocab-other.gguf", "rwkv", ["a"], [1], architecture="rwkv")
    text = vocabularies.report(tmp_path)
    assert "| falcon | BPE, falcon | 2 | 1 | 1 | 12 of 12 | 1 | 1 | 12 of 12 | " in text
    assert re.search(r"\| other \\\* \| rwkv \| 0 \|.*not by llama.cpp: .*; not by .*'rwkv'", text)
