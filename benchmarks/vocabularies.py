"""Are a GGUF file's tokens those of the original? Vocabularies of llama.cpp, into docs/models.md.

llama.cpp keeps vocabularies without weights for its tests (`ggml-vocab-*.gguf`), most of them with
texts (`.inp`) and the ids that the original tokenizer gives them (`.out`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Final

from gguf import GGUFReader
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from benchmarks import scripts
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import SafeError, UnknownSplittingWarning
from safe_integrations.models.embedded import EMBEDDED, embedded_file
from safe_integrations.models.llama_cpp.library import open_vocabulary
from safe_integrations.models.llama_cpp.tokenizer import LlamaTokenizer
from safe_integrations.models.quiet import quiet
from safe_integrations.models.spec import ModelSpec
from safe_integrations.models.table import build_token_table
from safe_integrations.models.tokenizer import Tokenizer
from safe_integrations.models.transformers.gguf_tokenizer import read_tokenizer
from safe_integrations.models.transformers.load import look_at as look_at_model
from safe_integrations.models.transformers.load import tokens_of
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
class Read:
    """What becomes of the texts of one vocabulary by one library; counts are of texts.

    Attributes:
        prompts: How many have the original ids in a prompt.
        answers: The same in an answer.
        spaced: The same in an answer behind a space.
        exact: How many came back, byte for byte.
        problem: Why it cannot be used; the numbers are 0 then.
    """

    prompts: int = 0
    answers: int = 0
    spaced: int = 0
    exact: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Found:
    """What became of one vocabulary.

    Attributes:
        name: Of the file, without what all have in common.
        kind: Its model and, for byte-level BPE, how it splits text.
        weights: Whether transformers can read a model of this architecture from GGUF.
        golden: Texts whose original ids are known.
        texts: Texts whose bytes were compared.
        llama: By llama.cpp.
        transformers: By transformers.
    """

    name: str
    kind: str
    weights: bool
    golden: int
    texts: int
    llama: Read
    transformers: Read


def look_at(path: Path) -> Found:
    """Tokenises the texts that come with a vocabulary, and compares."""
    name, (kind, weights) = path.stem.removeprefix("ggml-vocab-"), _about(path)
    golden = _golden(path)
    texts = [*(text for text, _ in golden), *_NASTY]
    llama, transformers = (_read(by, path, golden, texts) for by in (_by_llama, _by_transformers))
    return Found(name, kind, weights, len(golden), len(texts), llama, transformers)


def _read(
    by: Callable[[Path, str], tuple[Tokenizer, TokenTable]],
    path: Path,
    golden: Sequence[tuple[str, list[int]]],
    texts: Sequence[str],
) -> Read:
    try:
        tokenizer, table = by(path, "it")
    except (SafeError, ValueError) as error:
        told = str(error).partition(". ")[0]
        return Read(problem=told.replace(f"{path.parent}/", "").removeprefix("it: "))
    spaced = ((f" {text}".encode() if text else b"", ids) for text, ids in golden)
    return Read(
        prompts=sum(tokenizer.encode(text) == ids for text, ids in golden),
        answers=sum(table.encode(text.encode()) == ids for text, ids in golden),
        spaced=sum(table.encode(text) == ids for text, ids in spaced),
        exact=sum(_joined(table, text) == text.encode() for text in texts),
    )


def _by_llama(path: Path, name: str) -> tuple[Tokenizer, TokenTable]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownSplittingWarning)
        tokenizer = LlamaTokenizer(open_vocabulary(path), name)
    return tokenizer, tokenizer.tokens()


def _by_transformers(path: Path, name: str) -> tuple[Tokenizer, TokenTable]:
    """As a model that was converted has it: written, and read again."""
    with quiet(), TemporaryDirectory() as folder:
        read_tokenizer(path)[0].save_pretrained(folder)
        inner = PreTrainedTokenizerFast.from_pretrained(folder)
    size = max(inner.get_vocab().values()) + 1
    tokenizer = TransformersTokenizer(inner, name)
    ends = [inner.eos_token_id]
    return tokenizer, build_token_table(tokenizer, end_ids=ends, vocab_size=size)


def _about(path: Path) -> tuple[str, bool]:
    """A vocabulary's kind, and whether transformers reads weights of its architecture."""
    fields = GGUFReader(path).fields
    values = {key: str(field.contents()) for key, field in fields.items() if key in _ASKED}
    architecture, model, pre = (values.get(key, "not named") for key in _ASKED)
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}
    return f"BPE, {pre}" if model == "gpt2" else model, architecture in known


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


def _joined(table: TokenTable, text: str) -> bytes:
    return b"".join(table.symbol(i) for i in table.encode(text.encode()))


def report(folder: Path) -> str:
    """All vocabularies of a folder, as a section of a page."""
    found = [look_at(path) for path in sorted(folder.glob("ggml-vocab-*.gguf"))]
    if not found:
        raise SystemExit(f"{folder}: there is no ggml-vocab-*.gguf")
    used = sum(one.llama.problem is None for one in found)
    converted = sum(one.transformers.problem is None for one in found)
    rows = "\n".join(_row(one) for one in found)
    kinds = fill(", ".join(f"`{kind}`" for kind in SPLITTINGS), 100, break_on_hyphens=False)
    return f"""{_HEADING}

The {len(found)} vocabularies without weights that llama.cpp keeps for its tests, read by both
libraries that compute GGUF files: {used} can be used with llama.cpp, {converted} with transformers.
*Prompt*, *answer*: texts that get the ids of the original tokenizer, in a prompt and as a model's
own words. *Bytes*: texts, {len(_NASTY)} of our own among them, that the bytes of their tokens add
up to. Measured on {date.today()} with `make templates`.

| vocabulary | kind | texts | llama.cpp: prompt | answer | bytes | transformers: prompt | answer | \
bytes | |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
{rows}

\\* transformers reads no weights of this architecture from GGUF; only the tokenizer was tried.

llama.cpp's ids are the library's own, whatever way to split text a file names
(`tokenizer.ggml.pre`); one that the library does not know, it refuses. For transformers these ways
are known:
{kinds}.
They are those of the table, others that llama.cpp splits as one of them, and three that were
compared once with the ids of their own libraries, for 13,848 texts each, all equal: `tekken`
(mistral-common), `gpt-4o` and `dbrx` (tiktoken). Another byte-level vocabulary is split as GPT-2
does. Where a file names no way, or none that is known, an `UnknownSplittingWarning` says so.
"""


def default_pair() -> str:
    """The default pair by both libraries, as a section of a page."""
    texts = [*scripts.ALL, *scripts.mixed(20_000)]
    size = sum(len(text.encode()) for text in texts)
    rows = "\n".join(_pair_row(name, texts) for name in EMBEDDED)
    return f"""## The default pair by both libraries

{len(texts):,} texts of {len(scripts.LANGUAGES)} languages and of code, numbers, blanks and emoji,
cut and mixed, {size:,} bytes (`benchmarks/scripts.py`): how many have the same ids by llama.cpp as
by transformers.

| model | prompt | answer | bytes |
| --- | ---: | ---: | ---: |
{rows}

Known to differ:

- Gemma 3: runs of 32 spaces and more. llama.cpp takes the longest token first, 31 spaces, and then
  the rest; transformers' merges halve the run.
- Gemma 3: `▁▁` in a prompt, which both read as spaces: to llama.cpp only real ones are a run.
- Gemma 3: what stands beside a `▁` in an answer, where both spell it in bytes.
- SmolLM2: what stands beside one of the 21 rare bytes that are no tokens of it, in an answer.
- SmolLM2: `<reponame>` ends a text by llama.cpp, which takes it for the end of a file; elsewhere it
  is never written.
"""


def _pair_row(name: str, texts: Sequence[str]) -> str:
    ours, our_table = _by_llama(embedded_file(name, print), name)
    _, config, generation_config, inner = look_at_model(ModelSpec(source=name), print)
    theirs = TransformersTokenizer(inner, name)
    their_table = tokens_of(theirs, config, generation_config)
    prompts = sum(ours.encode(text) == theirs.encode(text) for text in texts)
    data = [text.encode() for text in texts]
    answers = sum(our_table.encode(text) == their_table.encode(text) for text in data)
    exact = sum(_joined(our_table, text) == text.encode() for text in texts)
    return f"| {name} | {prompts:,} | {answers:,} | {exact:,} |"


def _row(one: Found) -> str:
    name = one.name if one.weights else f"{one.name} \\*"
    remarks = []
    if not one.golden:
        remarks.append("comes without ids")
    elif one.llama.answers < one.golden and one.llama.problem is None:
        remarks.append(
            "the original begins every text with a space, an answer does not: with that space "
            f"{one.llama.spaced} of {one.golden} are equal"
        )
    if "not named" in one.kind:
        remarks.append("split with a warning")
    for library, read in (("llama.cpp", one.llama), ("transformers", one.transformers)):
        if read.problem is not None:
            remarks.append(f"not by {library}: {read.problem}")
    cells = [name, one.kind, str(one.golden)]
    for read in (one.llama, one.transformers):
        used = read.problem is None
        counts = (read.prompts, read.answers) if used and one.golden else ("", "")
        cells += [*map(str, counts), f"{read.exact} of {one.texts}" if used else ""]
    return f"| {' | '.join([*cells, '; '.join(remarks)])} |"
