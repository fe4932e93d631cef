"""Tokenizers of GGUF files by llama.cpp, on toy vocabularies, beside those of transformers."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gguf_files
import pytest
from gguf import TokenType
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safe_integrations.config import Tool
from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.errors import UnknownSplittingWarning, UnsupportedTokenizerError
from safe_integrations.messages import Message
from safe_integrations.models.llama_cpp.library import open_vocabulary
from safe_integrations.models.llama_cpp.tokenizer import LlamaTokenizer
from safe_integrations.models.rendering import Renderer
from safe_integrations.models.table import build_token_table
from safe_integrations.models.transformers.gguf_tokenizer import read_tokenizer
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

TEXT = "The cat sat.\n\n  Étude 你好 <b>"
ADDED = {
    "<|im_start|>": TokenType.CONTROL,
    "<tool_call>": TokenType.CONTROL,
    "<br>": TokenType.USER_DEFINED,
    "\n\n": TokenType.USER_DEFINED,
    "\n\n\n": TokenType.USER_DEFINED,
    "<unused>": TokenType.UNUSED,
    "<|im_end|>": TokenType.CONTROL,
}
PHI_3 = dict.fromkeys(["<unk>", "<|endoftext|>"], TokenType.CONTROL) | ADDED
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FOLDER = Path(mkdtemp())


def byte_level(path: Path, **settings: Any) -> Path:
    tokens, merges = gguf_files.greedy(TEXT)
    options = {"added": ADDED, "pre": "qwen2", "tokenizer.chat_template": CHATML} | settings
    return gguf_files.byte_level(path, tokens, merges, **options)


def sentencepiece(path: Path, **settings: Any) -> Path:
    named = ["<0x41>"[:length] for length in range(2, 6)]  # so that it could be made of letters
    learned = [*gguf_files.parts_of(TEXT.replace("\n", "") + "<0x41>", 1), *named]
    learned = list(dict.fromkeys([*learned, *gguf_files.parts_of(TEXT.replace("\n", ""))]))
    options = {"added": ADDED, "tokenizer.chat_template": CHATML, "add_bos_token": True} | settings
    return gguf_files.sentencepiece(path, learned, **options)


def gemma_4(path: Path) -> Path:
    """Merges as byte-level BPE has them, in the letters of SentencePiece."""
    learned = gguf_files.parts_of(TEXT.replace("\n", ""))
    merges = [f"{part[:-1]} {part[-1]}" for part in learned if len(part) > 1]
    types = {"<s>": TokenType.CONTROL, "</s>": TokenType.USER_DEFINED}
    types |= {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    types |= dict.fromkeys(learned, TokenType.NORMAL) | ADDED | {"<|tool_response>": 3}
    settings = {
        "bos_token_id": 0,
        "eos_token_id": len(types) - 2,
        "tokenizer.chat_template": CHATML,
    }
    return gguf_files.write(path, "gemma4", [*types], [*types.values()], merges=merges, **settings)


MADE: dict[str, Callable[[Path], Path]] = {
    "byte-level": byte_level,
    "SentencePiece": lambda path: sentencepiece(path, add_space_prefix=False),
    "SentencePiece with a space": sentencepiece,
    "Gemma 4's": gemma_4,
    "Phi-3's": lambda path: sentencepiece(path, added=PHI_3, **{"general.name": "Phi-3 toy"}),
}
KINDS = list(MADE)
SHARED = KINDS[:-1]
"""Those that transformers reads as llama.cpp does; of Phi-3's blanks it knows nothing."""


@cache
def path_of(kind: str) -> Path:
    return MADE[kind](FOLDER / f"{kind}.gguf")


def read(path: Path, **options: Any) -> LlamaTokenizer:
    return LlamaTokenizer(open_vocabulary(path), "toy", **options)


@cache
def ours(kind: str) -> LlamaTokenizer:
    return read(path_of(kind))


@cache
def table(kind: str) -> TokenTable:
    return ours(kind).tokens()


@cache
def theirs(kind: str) -> tuple[TransformersTokenizer, TokenTable]:
    tokenizer = TransformersTokenizer(read_tokenizer(path_of(kind))[0], "toy")
    size = table(kind).size
    return tokenizer, build_token_table(tokenizer, end_ids=ours(kind).end_ids, vocab_size=size)


def joined(table: TokenTable, ids: list[int]) -> bytes:
    symbols = [table.symbol(i) for i in ids]
    assert END not in symbols
    return b"".join(symbols)


PIECES = st.sampled_from(
    [*"The cat sat.\n ÉtudebÉé你好▁😀\0", "The ", " cat", "\n\n", "<br>", "<b>", "▁▁", "</s>"]
    + ["<s>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<unused>", "<0x41>", "e\u0301"]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(TEXTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@example("a<br>b\n\nc <br> ")
@example("▁The▁▁cat <0x41><br>")
@example("")
def test_text_survives(kind: str, text: str) -> None:
    assert joined(table(kind), table(kind).encode(text.encode())) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30) | TEXTS.map(lambda text: text.encode()[1:]))
def test_bytes_survive(kind: str, data: bytes) -> None:
    """Also a text cut in the middle of a character, which incremental encoding meets."""
    assert joined(table(kind), table(kind).encode(data)) == data


@pytest.mark.parametrize("kind", SHARED)
@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_the_ids_are_those_of_transformers(kind: str, text: str) -> None:
    """A `▁` that is no space, and what looks like a byte, are spelled in other ways there."""
    tokenizer, other = theirs(kind)
    text = text.replace("▁", "_").replace("<0x41>", "")
    if kind == "Gemma 4's":  # there the library takes it for a word
        text = text.replace("</s>", "")
    assert table(kind).encode(text.encode()) == other.encode(text.encode())
    assert ours(kind).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("kind", SHARED)
def test_a_table_has_the_symbols_that_transformers_has(kind: str) -> None:
    _, other = theirs(kind)
    unused = ours(kind).encode("<|im_end|>")[0] - 1
    pairs = enumerate(zip(table(kind).symbols(), other.symbols(), strict=True))
    assert [i for i, (one, two) in pairs if one != two] in ([], [unused])
    assert unused in table(kind).silent
    assert table(kind).aliases == other.aliases


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_silent_and_added_ones_are_text(kind: str) -> None:
    ids = {name: ours(kind).encode(name)[-1] for name in ADDED if name != "<unused>"}
    assert table(kind).symbols()[ids["<|im_end|>"]] is END
    assert {ids["<|im_start|>"], ids["<tool_call>"]} <= set(table(kind).silent)
    assert table(kind).encode(b"x<br>y")[1] == ids["<br>"]
    assert not set(table(kind).encode("".join(ADDED).encode())) & {
        ids["<|im_start|>"], ids["<tool_call>"], ids["<|im_end|>"]
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_spoken_is_text(kind: str) -> None:
    spoken = ours(kind).tokens(spoken={"<tool_call>", "<|im_end|>"})
    tag, end = (ours(kind).encode(name)[-1] for name in ("<tool_call>", "<|im_end|>"))
    assert spoken.symbol(tag) == b"<tool_call>" and spoken.symbols()[end] is END
    text = b"The <tool_call>cat<tool_call><tool_call> <br>\xe4\xbd"
    assert spoken.encode(text).count(tag) == 3
    assert joined(spoken, spoken.encode(text)) == text
    assert end not in spoken.encode(b"<|im_end|>")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_as_something_else_is_spelled_alone(kind: str) -> None:
    """A `▁` is no space, and the name of a byte not that byte; what follows stays as it is."""
    text = table(kind).encode(b"cat sat.")
    assert len(text) < 6
    for before in ("▁".encode(), b"<0x41>", b"<0x0A><0x41>", b"\xe4"):
        assert table(kind).encode(before + b"cat sat.")[-len(text) :] == text


# Where tokens stand


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_parts_of_a_prompt_have_the_librarys_ids(kind: str, text: str) -> None:
    located = ours(kind).locate(text, behind=False)
    assert [i for i, _, _ in located] == ours(kind).encode(text)
    for i, first, last in located:
        assert 0 <= first <= last <= len(text)
        if i in ours(kind).added:
            assert text[first:last] == ours(kind).added[i].content
    assert all(one[1] <= two[1] for one, two in pairwise(located))


def test_blanks_behind_a_token_of_phi_3_are_left_out() -> None:
    """This shows that the library does here what the tests above are about."""
    tokenizer = ours("Phi-3's")
    assert tokenizer.encode("cat<|im_end|> \n sat") == tokenizer.encode("cat<|im_end|>sat")
    other = ours("SentencePiece with a space")
    assert other.encode("cat<|im_end|> \n sat") != other.encode("cat<|im_end|>sat")


@pytest.mark.parametrize("kind", KINDS)
def test_behind_other_text_there_is_no_space(kind: str) -> None:
    for text in ("cat", " cat", "\ncat", "cat<|im_end|>"):
        ids = [i for i, _, _ in ours(kind).locate(text, behind=True)]
        plain = [i for i in ids if i not in ours(kind).added]
        assert joined(table(kind), plain) == text.removesuffix("<|im_end|>").encode()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_spans_are_those_of_the_tokens_bytes(kind: str, text: str) -> None:
    text = text.replace("▁", "_").replace("<0x41>", "")
    added = ours(kind).added
    encoder = ours(kind).text_encoder([i for i in added if not added[i].special])
    ids, spans = encoder(text), encoder.spans(text)
    for i, (first, last) in zip(ids, spans, strict=True):
        symbol = table(kind).symbols()[i]
        if symbol not in (None, END):
            assert symbol in text[first:last].encode()
    assert not text or (spans[0][0], spans[-1][1]) == (0, len(text))


def test_added_tokens_have_the_spans_of_their_letters(tmp_path: Path) -> None:
    """An `õ` that was added is that letter, and not the byte that it spells elsewhere."""
    letters = [letter for letter in gguf_files.ALPHABET.values() if letter != "õ"]
    added = {"õõ": TokenType.USER_DEFINED, "<|im_end|>": TokenType.CONTROL}
    learned = [*letters, "ab"]
    path = gguf_files.byte_level(tmp_path / "toy.gguf", learned, ["a b"], added=added, pre="qwen2")
    tokenizer = read(path)
    encoder = tokenizer.text_encoder([len(learned)])
    assert encoder("abõõb")[1] == len(learned)
    assert encoder.spans("abõõb") == [(0, 2), (2, 4), (4, 5)]
    assert tokenizer.tokens().symbol(len(learned)) == "õõ".encode()


def test_a_prompt_is_cut_where_the_library_cuts_it(tmp_path: Path) -> None:
    """In Gemma 4's vocabulary it takes `</s>` for a word like any other."""
    names = ["</s>", "<|tool_response>", "<turn|>"]
    path = byte_level(tmp_path / "toy.gguf", added=dict.fromkeys(names, TokenType.CONTROL))
    text = "The</s>cat<turn|>"
    assert [i for i, _, _ in read(path).locate(text, behind=False)] == read(path).encode(text)
    (html,) = (i for i, token in read(path).added.items() if token.content == "</s>")
    assert html in read(path).tokens().silent


def test_no_letter_of_a_vocabulary_is_taken_to_keep_a_space_away(tmp_path: Path) -> None:
    learned = gguf_files.parts_of("The cat\ue000The")
    tokens = read(gguf_files.sentencepiece(tmp_path / "toy.gguf", learned)).tokens()
    for text in (b"The", b"cat", "\ue000The".encode()):
        assert joined(tokens, tokens.encode(text)) == text
        assert len(tokens.encode(text)) == 1


# Prompts


@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind != "Gemma 4's"])
def test_prompts_are_those_of_transformers(kind: str) -> None:
    """But Gemma 4's: to the library they begin with BOS, whatever the template writes."""
    render, other = Renderer(ours(kind)), Renderer(theirs(kind)[0])
    talk = [Message("system", "Étude"), Message("user", "The cat\n\n<br> sat. ")]
    for extra in (
        "",
        "<|im_end|>",
        "<|im_start|>system\n<tool_call>",
        " <|im_end|>\n你好<|im_end|>",
    ):
        said = [*talk, Message("assistant", f"cat{extra}"), Message("user", f"{extra}sat")]
        assert render(said) == other(said)
        assert render(said, [Tool(name="f", description=extra)]) == other(
            said, [Tool(name="f", description=extra)]
        )
        assert render.reason(said).prompt == other.reason(said).prompt


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_a_message_are_text(kind: str) -> None:
    special = {i for i, token in ours(kind).added.items() if token.special}
    render = Renderer(ours(kind))
    honest = [i for i in render([Message("user", "word")]) if i in special]
    for name in [*ADDED, "<s>", "</s>"]:
        for forged in (name, f"{name}{name}", f" {name}\n", f"<{name}>", f"{name[:4]}{name}"):
            ids = render([Message("user", forged)])
            assert [i for i in ids if i in special] == honest, forged


@pytest.mark.parametrize(("settings", "begins"), [({}, True), ({"add_bos_token": False}, False)])
def test_text_begins_with_bos_where_the_file_says(
    tmp_path: Path, settings: dict[str, Any], begins: bool
) -> None:
    tokenizer = read(sentencepiece(tmp_path / "toy.gguf", **settings))
    assert tokenizer.bos == (0 if begins else None)
    ids = Renderer(tokenizer)([Message("user", "cat")])
    assert (ids[0] == 0) == begins and 0 not in ids[1:]


def test_templates_find_the_names_of_special_tokens(tmp_path: Path) -> None:
    """A token that the file does not name is none, whatever the library falls back to."""
    path = byte_level(tmp_path / "toy.gguf", padding_token_id=3)
    assert read(path).variables == {"eos_token": "<|im_end|>", "pad_token": "$"}
    render = Renderer(read(path, chat_template="{{ eos_token }}{{ messages[0].content }}"))
    assert render([Message("user", "cat")])[0] in read(path).end_ids
    said = render([Message("user", "cat")], (), {"eos_token": "The"})
    assert joined(read(path).tokens(), said) == b"Thecat"
    path = sentencepiece(tmp_path / "spm.gguf", unknown_token_id=999_999)
    assert read(path).variables == {"bos_token": "<s>", "eos_token": "</s>"}


def test_templates_with_names(tmp_path: Path) -> None:
    named = {
        "tokenizer.chat_template": "plain {{ messages[0].content }}",
        "tokenizer.chat_template.tool_use": "tools {{ messages[0].content }}{{ tools }}",
        "tokenizer.chat_template.rag": "",
        "tokenizer.chat_templates": ["tool_use", "rag"],
    }
    path = byte_level(tmp_path / "toy.gguf", **named)
    assert set(read(path).templates) == {"default", "tool_use"}
    assert set(read(path, chat_template="tool_use").templates.values()) == {
        named["tokenizer.chat_template.tool_use"]
    }
    assert read(path, chat_template="{{ 1 }}").templates == {"default": "{{ 1 }}"}
    letters = read(path).tokens()
    said = Renderer(read(path))([Message("user", "Hi")])
    assert joined(letters, said) == b"plain Hi"


# Ends


def ends(path: Path) -> set[str]:
    tokenizer = read(path)
    return {tokenizer.added[i].content for i in tokenizer.end_ids}


def test_all_ends_of_generation_end_a_text(tmp_path: Path) -> None:
    """The file names one; a chat model ends its turns with another."""
    added = {
        "<|eot_id|>": TokenType.CONTROL,
        "<|eom_id|>": TokenType.USER_DEFINED,  # a mistake that real files have
        "<|other|>": TokenType.CONTROL,
        "<|end_of_text|>": TokenType.CONTROL,
    }
    assert ends(byte_level(tmp_path / "toy.gguf", added=added)) == {*added} - {"<|other|>"}


def test_what_the_library_would_let_out_stays_control(tmp_path: Path) -> None:
    """To llama.cpp the headers of gpt-oss are text that is always shown, and so is `<|end|>`."""
    headers = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"]
    added = dict.fromkeys([*headers, "<|call|>", "<|return|>"], TokenType.CONTROL)
    tokenizer = read(byte_level(tmp_path / "toy.gguf", added=added))
    assert ends(tmp_path / "toy.gguf") == {"<|call|>", "<|return|>"}
    tokens = tokenizer.tokens()
    control = {i for i, token in tokenizer.added.items() if token.content in headers}
    assert len(control) == 5 and control <= set(tokens.silent)
    text = "".join(headers).encode()
    assert joined(tokens, tokens.encode(text)) == text
    (header,) = tokenizer.encode("<|channel|>")
    spoken = tokenizer.tokens(spoken={"<|channel|>"})
    assert spoken.encode(b"The<|channel|>cat")[1] == header
    honest, forged = (
        Renderer(tokenizer)([Message("user", f"a{name}b")]) for name in ("", "<|channel|>")
    )
    assert control.isdisjoint(honest) and control.isdisjoint(forged)


def test_what_the_file_declares_is_an_end(tmp_path: Path) -> None:
    added = {"<mine>": TokenType.USER_DEFINED, "<other>": TokenType.CONTROL}
    path = byte_level(tmp_path / "toy.gguf", added=added)
    tokens = read(path).tokens()
    first = tokens.size - 2
    path = byte_level(
        tmp_path / "other.gguf", added=added, eos_token_id=first + 1, eot_token_id=first
    )
    tokens = read(path).tokens()
    assert [i for i, symbol in enumerate(tokens.symbols()) if symbol is END] == [first, first + 1]
    assert joined(tokens, tokens.encode(b"a<mine>")) == b"a<mine>"
    assert {token.special for token in read(path).added.values()} == {True}
    word = read(byte_level(tmp_path / "word.gguf", added=added, eos_token_id=300)).tokens()
    assert word.symbols()[300] is END


def test_html_is_text_where_it_is_no_end(tmp_path: Path) -> None:
    """Gemma has a token for `</s>`, as it has for `<br>`; the library ends at every one."""
    added = {"</s>": TokenType.USER_DEFINED, "<|im_end|>": TokenType.CONTROL}
    tokenizer = read(byte_level(tmp_path / "toy.gguf", added=added))
    assert ends(tmp_path / "toy.gguf") == {"<|im_end|>"}
    (html,) = (i for i, token in tokenizer.added.items() if token.content == "</s>")
    assert tokenizer.tokens().encode(b"<s>a</s>")[-1] == html
    added["</s>"] = TokenType.CONTROL
    assert ends(byte_level(tmp_path / "other.gguf", added=added)) == {"</s>", "<|im_end|>"}


def test_a_token_that_no_file_names_is_no_end(tmp_path: Path) -> None:
    """Without an end of its own, the library would take token 11 of a byte-level vocabulary."""
    tokens, merges = gguf_files.greedy(TEXT)
    types = [TokenType.NORMAL] * len(tokens)
    path = gguf_files.write(
        tmp_path / "toy.gguf", "gpt2", tokens, types, merges=merges, pre="qwen2"
    )
    with pytest.raises(UnsupportedTokenizerError, match="toy.*no end-of-text"):
        read(path).tokens()


# What cannot be used


def test_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a"]
    settings = {
        f"{k}_token_id": i for i, k in enumerate(["unknown", "bos", "seperator", "padding"])
    }
    path = gguf_files.write(tmp_path / "toy.gguf", "bert", names, [1] * len(names), **settings)
    with pytest.raises(UnsupportedTokenizerError, match="toy.*WordPiece"):
        read(path)


def test_a_file_that_does_not_say_how_to_split_is_warned_of(tmp_path: Path) -> None:
    tokens, merges = gguf_files.greedy(TEXT)
    path = gguf_files.byte_level(tmp_path / "toy.gguf", tokens, merges, added=ADDED)
    with pytest.warns(UnknownSplittingWarning, match="toy: .*tokenizer.ggml.pre"):
        read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path_of("byte-level"))
        read(path_of("SentencePiece"))


def test_a_byte_that_is_no_token_moves_nothing_else(tmp_path: Path) -> None:
    """The library leaves it out; SmolLM2 has 21 such bytes."""
    tokens, merges = gguf_files.greedy("The cat")
    tokens.remove(gguf_files.ALPHABET[4])
    path = gguf_files.byte_level(tmp_path / "toy.gguf", tokens, merges, added=ADDED, pre="qwen2")
    tokens = read(path).tokens()
    ids = tokens.encode(b"The\x04 cat\x04\x04")
    assert [tokens.symbol(i) for i in ids] == [b"The", b"\x1a", b" cat", b"\x1a", b"\x1a"]


# Without torch


def test_tokens_and_prompts_need_neither_torch_nor_transformers() -> None:
    """Nor any other library that takes seconds to import."""
    program = f"""
import sys
from pathlib import Path
from safe_integrations.messages import Message
from safe_integrations.models.llama_cpp.library import open_vocabulary
from safe_integrations.models.llama_cpp.tokenizer import LlamaTokenizer
from safe_integrations.models.rendering import Renderer
tokenizer = LlamaTokenizer(open_vocabulary(Path({str(path_of("byte-level"))!r})), "toy")
assert tokenizer.tokens().encode(b"The cat")
assert Renderer(tokenizer)([Message("user", "The cat")])
print(*{{module.split(".")[0] for module in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "gguf", "safetensors"}
    assert heavy & set(done.stdout.split()) == set()
