"""Answers that are nothing but JSON of calls, without any tag around them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final

from safe_integrations.calls.scanner import ARGUMENT_KEYS, read_call

_KEYS: Final = frozenset({"name", "type", "id", *ARGUMENT_KEYS})
_FENCE: Final = re.compile(r"```(?:json)?\s*(.*?)\s*(?:```)?", re.S)
_OPENING: Final = re.compile(r"(?:`{1,3}|```j(?:s|so|son)?|```(?:json)?\s*)?$", re.S)
_FIRST_KEY: Final = re.compile(r'(?:```(?:json)?\s*)?\[?\s*\{\s*"(\w+)"')
_HEAD: Final = re.compile(r'(?:```(?:json)?\s*)?\[?\s*(?:\{\s*(?:"\w*)?)?')
_NAME: Final = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"')

_Call = tuple[str, dict[str, Any], str]


def may_be_calls(text: str, names: Collection[str]) -> bool:
    """Whether a text may grow into an answer that is nothing but calls of known tools."""
    text = text.lstrip()
    if _OPENING.match(text) or _HEAD.fullmatch(text):
        return True
    key = _FIRST_KEY.match(text)
    if key is None or key[1] not in _KEYS:
        return False
    name = _NAME.search(text)
    return name is None or name[1] in names


def calls_of(text: str, names: Collection[str]) -> list[_Call]:
    """The calls of an answer that is nothing but calls of known tools; else none.

    Several calls may stand in a list, or one after another with `;`, `,` or white space between.
    """
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    text = fenced[1] if fenced else text
    calls: list[_Call] = []
    decoder = json.JSONDecoder(strict=False)
    at = 0
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            calls += map(read_call, value if isinstance(value, list) else [value])
            at += len(text[at:]) - len(text[at:].lstrip("; ,\t\r\n"))
    except (ValueError, RecursionError):
        return []
    return calls if all(name in names for name, _, _ in calls) else []
