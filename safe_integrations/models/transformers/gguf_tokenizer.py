"""The tokenizer that a GGUF file describes, as one of transformers.

A GGUF file has vocabulary, merges, what each token is for, and the name of a way to split text.
transformers' own reader leaves out some of that without a word: names it does not know mean GPT-2's
way, `ignore_merges` is dropped, tokens with letters outside the byte alphabet (DeepSeek's `｜`) are
spelled anew and cut into pieces. So byte-level vocabularies are put together here.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from safe_integrations.errors import ModelLoadError
from safe_integrations.models.tokenizer import SPACE
from safe_integrations.models.transformers.splitting import GPT2, SPLITTINGS, Splitting

_CONTROL: Final = 3
_USER_DEFINED: Final = 4


def read_tokenizer(path: Path) -> tuple[Any, str | None]:
    """The tokenizer of a GGUF file, and how its text is split where we do not know how.

    Returns:
        A `PreTrainedTokenizerFast`; the name of the unknown kind (`""` where the file names
        none), or None where all is known.

    Raises:
        ModelLoadError: A byte-level vocabulary without merges.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, table, settings = get_gguf_tokenizer(str(path))
    unknown = None
    if table.get("tokenizer_type") == "gpt2":
        if "merges" not in table:
            raise ModelLoadError(f"{path.name}: it has no merges (tokenizer.ggml.merges)")
        kind = table.get("pre_tokenizer_type", "")
        unknown = None if kind in SPLITTINGS else kind
        splitting = SPLITTINGS.get(kind, GPT2)
        settings.setdefault("add_bos_token", splitting.bos)
        backend = _byte_level(table, splitting)
    else:
        backend, _ = convert_gguf_tokenizer(architecture, table)
        if table.get("tokenizer_type") == "llama" and not architecture.startswith("gemma"):
            _write_spaces(backend, prefix=table.get("add_prefix_space", True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings), unknown


def _byte_level(table: dict[str, Any], splitting: Splitting) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    tokens, merges = table["tokens"], [tuple(merge.split(" ")) for merge in table["merges"]]
    types = table.get("token_type") or [0] * len(tokens)
    added = {
        token: AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    }
    # Added tokens at the end were never learned: an "õ" there is that letter, and not a byte's.
    merged = {"".join(merge) for merge in merges}
    last = takewhile(lambda token: token in added and token not in merged, reversed(tokens))
    learned = tokens[: len(tokens) - len(list(last))]
    if len({*learned}) < len(learned):  # a double would move the ids of all that is added
        learned = tokens
    vocabulary = {token: i for i, token in enumerate(learned)}
    backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=splitting.ignore_merges))
    backend.pre_tokenizer = Sequence(
        [
            *(Split(Regex(pattern), "isolated") for pattern in splitting.patterns),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = Decoder()
    backend.add_tokens(list(added.values()))
    return backend


def _write_spaces(backend: Any, *, prefix: bool) -> None:
    """SentencePiece as llama.cpp runs it: a space in front of all text that follows no text."""
    from tokenizers.normalizers import Prepend, Replace, Sequence

    backend.normalizer = Sequence([Prepend(SPACE)] * prefix + [Replace(" ", SPACE)])
    backend.pre_tokenizer = None
