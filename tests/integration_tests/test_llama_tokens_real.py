"""Tokens and prompts of the default pair by llama.cpp, beside those of transformers."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from random import Random

import pytest
from test_loading_real import TALKS, wrong_edits
from test_loading_real import TEXTS as PROSE

from benchmarks import scripts
from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.models.embedded import EMBEDDED, embedded_file
from safe_integrations.models.llama_cpp.library import open_vocabulary
from safe_integrations.models.llama_cpp.metadata import context_length
from safe_integrations.models.llama_cpp.tokenizer import LlamaTokenizer
from safe_integrations.models.rendering import Renderer
from safe_integrations.models.spec import ModelSpec
from safe_integrations.models.transformers.load import look_at, tokens_of
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

TEXTS = [*scripts.ALL, *scripts.mixed(400)]


@cache
def ours(name: str) -> tuple[LlamaTokenizer, TokenTable]:
    tokenizer = LlamaTokenizer(open_vocabulary(embedded_file(name, print)), name)
    return tokenizer, tokenizer.tokens()


@cache
def theirs(name: str) -> tuple[TransformersTokenizer, TokenTable]:
    _, config, generation_config, inner = look_at(ModelSpec(source=name), print)
    tokenizer = TransformersTokenizer(inner, name)
    return tokenizer, tokens_of(tokenizer, config, generation_config)


@pytest.mark.parametrize(
    ("name", "differ"), [("smollm2-135m", [b"<reponame>"]), ("gemma3-270m", [])]
)
def test_tables_are_the_same(name: str, differ: list[bytes]) -> None:
    """llama.cpp ends a text at `<reponame>` too."""
    tokenizer, table = ours(name)
    pairs = zip(table.symbols(), theirs(name)[1].symbols(), strict=True)
    apart = [(i, one, two) for i, (one, two) in enumerate(pairs) if one != two]
    assert [tokenizer.added[i].content.encode() for i, _, _ in apart] == differ
    assert all(one is END and two is None for _, one, two in apart)
    assert {(i, j) for i, j in theirs(name)[1].aliases} <= set(table.aliases)


@pytest.mark.parametrize("name", EMBEDDED)
def test_ids_are_the_same_in_many_scripts(name: str) -> None:
    (tokenizer, table), (other, other_table) = ours(name), theirs(name)
    for text in TEXTS:
        assert table.encode(text.encode()) == other_table.encode(text.encode()), text
        assert tokenizer.encode(text) == other.encode(text), text
        assert [i for i, _, _ in tokenizer.locate(text, behind=False)] == other.encode(text)


@pytest.mark.parametrize("name", EMBEDDED)
def test_bytes_add_up_to_the_text(name: str) -> None:
    table = ours(name)[1]
    for text in [*TEXTS, "▁▁under▁scores ▁", " " * 100, "a" + " " * 40 + "b"]:
        data = text.encode()
        assert b"".join(map(table.symbol, table.encode(data))) == data
        assert b"".join(map(table.symbol, table.encode(data[1:-1]))) == data[1:-1]


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("kind", PROSE)
def test_incremental_tokenisation_equals_the_whole(name: str, kind: str) -> None:
    assert wrong_edits(ours(name)[1], kind, Random(f"{name} {kind}")) == []


def test_where_they_differ() -> None:
    """As docs/models.md says: long runs of spaces, and a `▁` that is no space."""
    tokenizer, other = ours("gemma3-270m")[0], theirs("gemma3-270m")[0]
    runs = {n for n in range(1, 80) if tokenizer.encode(" " * n) != other.encode(" " * n)}
    assert runs == set(range(32, 80))
    assert tokenizer.encode("▁▁") != other.encode("▁▁")


@pytest.mark.parametrize(
    ("name", "golden"), [("smollm2-135m", "c1eac1bd3404ee29"), ("gemma3-270m", "0e4b414a2f5fbf76")]
)
def test_prompts_stay_as_they_are(name: str, golden: str) -> None:
    """The same hashes as those of the prompts that transformers' tokenizers give."""
    render = Renderer(ours(name)[0])
    prompts = [render(messages, tools) for messages, tools in TALKS]
    assert hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16] == golden


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_the_file_tells_is_what_transformers_reads(name: str) -> None:
    tokenizer, other = ours(name)[0], theirs(name)[0]
    assert tokenizer.bos == other.bos
    assert tokenizer.variables == other.variables
    assert tokenizer.templates == other.templates
    _, config, _, _ = look_at(ModelSpec(source=name), print)
    assert context_length(embedded_file(name, print)) == config.max_position_embeddings
