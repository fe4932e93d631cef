"""What a way to the end may need that no byte by itself tells: names, and what patterns want."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from safe_integrations.structure.closing import Closing

if TYPE_CHECKING:
    from llguidance import LLMatcher

_PATTERNS: Final = 64
_PARTS: Final = 16
"""Most patterns, and parts of each, that are looked at."""

_LONGEST: Final = 256  # bytes

_ANCHOR: Final = re.compile(r"(?<![\[\\])\^|(?<!\\)\$")
_REPETITION: Final = re.compile(r"[*+}]\??(?:\)[*+?]*)*")

Start = Callable[[str], "LLMatcher | None"]
"""Gives the library's parser at the beginning of a grammar, over `BYTES`."""


@lru_cache(maxsize=64)
def wanted(lark: str) -> tuple[list[bytes], list[str]]:
    """What the JSON schemas of a grammar speak of.

    Returns:
        Names of properties that are required, as JSON writes them, without the first quote; and all
        patterns.
    """
    nodes: list[Any] = []
    for match in re.finditer("%json ", lark):
        with suppress(ValueError):  # it stands in a text
            nodes.append(json.JSONDecoder().raw_decode(lark, match.end())[0])
    names, patterns = dict[str, None](), dict[str, None]()
    for node in nodes:  # what is inside is appended
        if isinstance(node, list):
            nodes += node
        if not isinstance(node, dict):
            continue
        nodes += node.values()
        required, pattern = node.get("required"), node.get("pattern")
        if isinstance(required, list):
            names |= dict.fromkeys(name for name in required if isinstance(name, str))
        if isinstance(pattern, str):
            patterns[pattern] = None
        if isinstance(node.get("patternProperties"), dict):
            patterns |= dict.fromkeys(node["patternProperties"])
    written = [json.dumps(name, ensure_ascii=False).encode()[1:] for name in names]
    return written, list(patterns)


def words(patterns: Sequence[str], start: Start) -> list[bytes]:
    """Short ends of strings, their quotes included, that some patterns may want."""
    return [word for pattern in patterns[:_PATTERNS] for word in _words(pattern, start)]


@lru_cache(maxsize=256)
def _words(pattern: str, start: Start) -> list[bytes]:
    """Ends by all of a pattern, by one of its choices, or by what follows a repetition in it."""
    core = _ANCHOR.sub("", pattern)
    choices = (choice.strip("()") for choice in core.split("|"))
    behind = (core[match.end() :] for match in _REPETITION.finditer(core))
    found: list[bytes] = []
    for part in reversed([core, *choices, *filter(None, behind)][:_PARTS]):
        rule = json.dumps({"type": "string", "pattern": f"^(?:{part})$"})
        matcher = start(f"start: %json {rule}")
        if matcher is not None:
            way = Closing(matcher, words=partial(list, found), longest=_LONGEST).way(b"")
            if way is not None and way[1:] not in found:
                found.insert(0, way[1:])
    return found
