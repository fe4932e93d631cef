"""GGUF files for tests: toy vocabularies, where needed with the weights of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter, TokenType

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [b for b in range(256) if b not in _VISIBLE]
ALPHABET = {b: chr(b) for b in _VISIBLE} | {b: chr(256 + i) for i, b in enumerate(_HIDDEN)}
"""How byte-level BPE spells the 256 bytes (GPT-2)."""

_KINDS = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING}


def spelled(text: str) -> str:
    return "".join(ALPHABET[byte] for byte in text.encode())


def greedy(text: str) -> tuple[list[str], list[str]]:
    """Tokens and merges that make one token of every part of a text: only splitting can part it."""
    letters, tokens, merges = spelled(text), list(ALPHABET.values()), {}
    for start in range(len(letters)):
        for end in range(start + 2, len(letters) + 1):
            merges.setdefault(letters[start:end], f"{letters[start : end - 1]} {letters[end - 1]}")
    return [*tokens, *merges], list(merges.values())


def byte_level(
    path: Path, tokens: list[str], merges: list[str], *, added: dict[str, int], **settings: Any
) -> Path:
    """A byte-level vocabulary; `added` are further tokens with their types, the last one the end.

    `settings` are values of the file: `pre`, `add_bos_token`, `bos_token_id`, ...
    """
    types = [TokenType.NORMAL] * len(tokens) + list(added.values())
    settings = {"eos_token_id": len(types) - 1} | settings
    return write(path, "gpt2", [*tokens, *added], types, merges=merges, **settings)


def sentencepiece(
    path: Path, learned: list[str], *, added: dict[str, int] | None = None, **settings: Any
) -> Path:
    """A SentencePiece vocabulary: `<s>`, `</s>`, all bytes, what is learned, best first, and more.

    `settings` are values of the file: `add_space_prefix`, `eos_token_id`, ...
    """
    types = {"<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    types |= {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    types |= dict.fromkeys(learned, TokenType.NORMAL) | (added or {})
    settings = {"bos_token_id": 0, "eos_token_id": 1, "pre": "default"} | settings
    scores = [-float(i) for i in range(len(types))]
    return write(path, "llama", list(types), list(types.values()), scores=scores, **settings)


def parts_of(text: str, longest: int = 5) -> list[str]:
    """All parts of a text, as SentencePiece spells them, shorter ones first."""
    letters = text.replace(" ", "\u2581")
    found = (letters[i : i + n] for n in range(1, longest + 1) for i in range(len(letters) - n + 1))
    return list(dict.fromkeys(found))


def write(
    path: Path,
    model: str,
    tokens: list[str],
    types: list[int],
    *,
    architecture: str | None = None,
    weights: bool = False,
    context_length: int = 64,
    window: int | None = None,
    width: int = 8,
    spread: float = 1,
    **settings: Any,
) -> Path:
    """A file; with `weights` those of a tiny Llama, or where there is a window of a Gemma 3."""
    architecture = architecture or ("llama" if window is None else "gemma3")
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in settings.items():
        key = name if "." in name else f"tokenizer.ggml.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, _KINDS[type(value)])
    if weights:
        writer.add_context_length(context_length)
        _add_weights(writer, len(tokens), window, width, spread)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(
    writer: GGUFWriter, vocab_size: int, window: int | None, width: int, spread: float
) -> None:
    layers = 1 if window is None else 6  # the last of six sees everything
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    norms = ["attn", "ffn"]
    if window is not None:
        writer.add_sliding_window(window)
        writer.add_key_length(width)
        writer.add_value_length(width)
        norms += ["attn_q", "attn_k", "post_attention", "post_ffw"]
    rng = np.random.default_rng(0)
    square = [f"attn_{part}" for part in ("q", "k", "v", "output")]
    square += [f"ffn_{part}" for part in ("gate", "up", "down")]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}.weight": (width, width) for name in square}
        shapes |= {f"blk.{layer}.{name}_norm.weight": (width,) for name in norms}
    shapes |= {"output_norm.weight": (width,), "token_embd.weight": (vocab_size, width)}
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, spread, shape).astype(np.float32))
