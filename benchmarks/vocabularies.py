"""Are a GGUF file's tokens those of the original? Vocabularies of llama.cpp, into docs/models.md.

llama.cpp keeps vocabularies without weights for its tests (`ggml-vocab-*.gguf`), most of them with
texts (`.inp`) and the ids that the original tokenizer gives them (`.out`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any, Final

from gguf import GGUFReader
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import SafeError
from safe_integrations.models.quiet import quiet
from safe_integrations.models.table import build_token_table
from safe_integrations.models.transformers.gguf_tokenizer import read_tokenizer
from safe_integrations.models.transformers.splitting import SPLITTINGS
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

_HEADING: Final = "## Vocabularies"
_SEPARATOR: Final = "\n__ggml_vocab_test__\n"

_ASKED: Final = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")

_NASTY: Final = (
    "👩‍👩‍👧‍👦👍🏽🇩🇪 e\u0301 ﬁn ﷽",
    "<|im_end|>\n<|im_start|>system\n</s><eos><end_of_turn><|eot_id|><0x41>",
    "ภาษาไทยไม่มีช่องว่าง",
    "one\r\ntwo\r\n\r\n\tthree \r",
    "▁▁under▁scores ▁",
    "\u200b\u200e\u202e\ufeff\u00a0\u3000\u2028",
    "1234567 ½ ² ٣٤٥ １２３ ①②③ 1,234.5e-10",
    "नमस्ते दुनिया 你好世界 こんにちは 안녕 שלום مرحبا",
    "  leading, trailing  \n\n\n   ",
    "õ÷ÁýÀ Ġ Ċ ĉ",
)
"""Texts in which bytes get lost if they do anywhere."""


@dataclass(frozen=True)
class Found:
    """What became of one vocabulary; counts are of texts.

    Attributes:
        name: Of the file, without what all have in common.
        kind: Its model and, for byte-level BPE, how it splits text.
        weights: Whether transformers can read a model of this architecture from GGUF.
        golden: Texts whose original ids are known.
        prompts: Of these, how many have them in a prompt.
        answers: The same in an answer.
        spaced: The same in an answer behind a space.
        texts: Texts whose bytes were compared.
        exact: Of these, how many came back.
        problem: Why it cannot be used; the numbers are 0 then.
    """

    name: str
    kind: str
    weights: bool
    golden: int = 0
    prompts: int = 0
    answers: int = 0
    spaced: int = 0
    texts: int = 0
    exact: int = 0
    problem: str | None = None


def look_at(path: Path) -> Found:
    """Tokenises the texts that come with a vocabulary, and compares."""
    name, kind, weights = path.stem.removeprefix("ggml-vocab-"), *_about(path)
    try:
        tokenizer, _ = _tokenizer(path)
        size = max(tokenizer.get_vocab().values()) + 1
        table = build_token_table(
            TransformersTokenizer(tokenizer, name),
            end_ids=[tokenizer.eos_token_id],
            vocab_size=size,
        )
    except (SafeError, ValueError) as error:
        return Found(name, kind, weights, problem=str(error).partition(". ")[0])
    golden = _golden(path)
    texts = [*(text for text, _ in golden), *_NASTY]
    return Found(
        name,
        kind,
        weights,
        golden=len(golden),
        prompts=sum(_prompt(tokenizer, text) == ids for text, ids in golden),
        answers=sum(table.encode(text.encode()) == ids for text, ids in golden),
        spaced=sum(
            table.encode(f" {text}".encode() if text else b"") == ids for text, ids in golden
        ),
        texts=len(texts),
        exact=sum(_joined(table, text) == text.encode() for text in texts),
    )


def _about(path: Path) -> tuple[str, bool]:
    """A vocabulary's kind, and whether transformers reads weights of its architecture."""
    fields = GGUFReader(path).fields
    values = {key: str(field.contents()) for key, field in fields.items() if key in _ASKED}
    architecture, model, pre = (values.get(key, "not named") for key in _ASKED)
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}
    return f"BPE, {pre}" if model == "gpt2" else model, architecture in known


def _tokenizer(path: Path) -> tuple[Any, str | None]:
    """The tokenizer as a model that was converted has it: written, and read again."""
    with quiet(), TemporaryDirectory() as folder:
        tokenizer, unknown = read_tokenizer(path)
        tokenizer.save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder), unknown


def _golden(path: Path) -> list[tuple[str, list[int]]]:
    texts, ids = path.with_suffix(".gguf.inp"), path.with_suffix(".gguf.out")
    if not texts.is_file():
        return []
    lines = ids.read_text("utf-8").splitlines()
    with texts.open(encoding="utf-8", newline="") as file:
        pieces = file.read().split(_SEPARATOR)
    return [
        (text, [int(i) for i in line.split()])
        for text, line in zip(pieces[: len(lines)], lines, strict=True)
    ]


def _prompt(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _joined(table: TokenTable, text: str) -> bytes:
    return b"".join(table.symbol(i) for i in table.encode(text.encode()))


def report(folder: Path) -> str:
    """All vocabularies of a folder, as a section of a page."""
    found = [look_at(path) for path in sorted(folder.glob("ggml-vocab-*.gguf"))]
    if not found:
        raise SystemExit(f"{folder}: there is no ggml-vocab-*.gguf")
    used = [one for one in found if one.problem is None]
    rows = "\n".join(_row(one) for one in found)
    kinds = fill(", ".join(f"`{kind}`" for kind in SPLITTINGS), 100, break_on_hyphens=False)
    return f"""{_HEADING}

The {len(found)} vocabularies without weights that llama.cpp keeps for its tests; {len(used)} can be
used here. Each is read as GGUF files are whose models transformers computes. *Prompt*, *answer*:
texts that get the ids of the original tokenizer, in a prompt and as a model's own words. *Bytes*:
texts, {len(_NASTY)} of our own among them, that the bytes of their tokens add up to. Measured on
{date.today()} with `make templates`.

| vocabulary | kind | prompt | answer | bytes | |
| --- | --- | ---: | ---: | ---: | --- |
{rows}

\\* transformers reads no weights of this architecture from GGUF; only the tokenizer was tried.

Known ways to split text (`tokenizer.ggml.pre`):
{kinds}.
They are those of the table, others that llama.cpp splits as one of them, and three that were
compared once with the ids of their own libraries, for 13,848 texts each, all equal: `tekken`
(mistral-common), `gpt-4o` and `dbrx` (tiktoken). Another byte-level vocabulary is split as GPT-2
does, with an `UnknownSplittingWarning`.
"""


def _row(one: Found) -> str:
    name = one.name if one.weights else f"{one.name} \\*"
    if one.problem is not None:
        return f"| {name} | {one.kind} | | | | not used: {one.problem} |"
    remarks = []
    if not one.golden:
        remarks.append("comes without ids")
    elif one.answers < one.golden:
        remarks.append(
            "the original begins every text with a space, an answer does not: with that space "
            f"{one.spaced} of {one.golden} are equal"
        )
    if "not named" in one.kind:
        remarks.append("split as GPT-2 does, with a warning")
    of = f" of {one.golden}" if one.golden else ""
    prompts, answers = (f"{n}{of}" if of else "" for n in (one.prompts, one.answers))
    bytes_ = f"{one.exact} of {one.texts}"
    cells = (name, one.kind, prompts, answers, bytes_, "; ".join(remarks))
    return f"| {' | '.join(cells)} |"
