"""How byte-level BPE vocabularies split text into words before they merge, by GGUF's names.

Merges are learned inside words, so other words mean other tokens than those of the training. A
tokenizer's own file says how to split; a GGUF file only names the kind (`tokenizer.ggml.pre`), and
llama.cpp knows the rest. Here are the kinds whose ids we have compared with those that the original
tokenizers give (docs/models.md), and the names of others that split as they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Splitting:
    """What a kind does before merging.

    Attributes:
        patterns: Regular expressions, one applied to what the one before has left: every match is a
            word, and so is what lies between two.
        ignore_merges: A word that is a token is that token, whatever its merges would make of it.
        bos: Text begins with BOS where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    bos: bool = False


def _pattern(*alternatives: str) -> str:
    return "|".join(alternatives)


_CONTRACTIONS: Final = "'s|'t|'re|'ve|'m|'ll|'d"
_SPACES: Final = r"\s+(?!\S)|\s+"
_DIGIT: Final = r"\p{N}"
_GPT2: Final = _pattern(_CONTRACTIONS, r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _SPACES)


def _words(letter: str, digits: str, other: str) -> str:
    """GPT-4's words and their relatives: a sign may begin one, and line ends stay together."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{letter}+"
    rest = (rf" ?{other}+[\r\n]*", r"\s*[\r\n]+", _SPACES)
    return _pattern(f"(?i:{_CONTRACTIONS})", word, digits, *rest)


def _cased_words(digits: str, contractions: str = "") -> str:
    """As above, but a word ends where capitals begin: `camelCase` is two."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    sign = r"[^\r\n\p{L}\p{N}]?"
    words = (f"{sign}{upper}*{lower}+{contractions}", f"{sign}{upper}+{lower}*{contractions}")
    return _pattern(*words, digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", _SPACES)


_NO_LETTER: Final = r"[^\s\p{L}\p{N}]"
_LLAMA3: Final = _words(r"\p{L}", r"\p{N}{1,3}", _NO_LETTER)
_CJK: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# DeepSeek's list of letters: those with capitals, less what is here, which Unicode added later.
_LISTED: Final = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u0560-\u0588\u10c7-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d\ua790-\ua7fa"
    r"\uab30-\uab68\x{10570}-\x{105bc}\x{10d50}-\x{10d85}\x{16e40}-\x{16e7f}\x{1d400}-\x{1d7cb}"
    r"\x{1df00}-\x{1df2a}]]"
)

_OF: Final = {
    Splitting((_GPT2,)): "gpt-2 phi-2 mpt olmo",
    Splitting((_DIGIT, _GPT2)): "starcoder refact command-r smollm minerva-7b",
    Splitting((_LLAMA3,), ignore_merges=True, bos=True): (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"
    ),
    Splitting((_LLAMA3,)): "dbrx smaug-bpe",
    Splitting((_words(r"\p{L}", _DIGIT, _NO_LETTER),)): "qwen2 deepseek-r1-qwen megrez stablelm2",
    Splitting((_words(r"[\p{L}\p{M}]", _DIGIT, r"[^\s\p{L}\p{M}\p{N}]"),)): "qwen35",
    Splitting((_cased_words(_DIGIT),), ignore_merges=True, bos=True): "tekken",
    Splitting((_cased_words(r"\p{N}{1,3}", f"(?i:{_CONTRACTIONS})?"),)): "gpt-4o minimax-m2",
    Splitting((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9]{3}")): "falcon",
    Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT)): "deepseek-coder",
    Splitting(
        (
            r"[\r\n]",
            rf"\s?{_LISTED}+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CJK,
            _DIGIT,
        )
    ): "deepseek-llm",
}

GPT2: Final = Splitting((_GPT2,))
"""Where the kind is not known."""

SPLITTINGS: Final = {name: splitting for splitting, names in _OF.items() for name in names.split()}
"""By `tokenizer.ggml.pre`."""
