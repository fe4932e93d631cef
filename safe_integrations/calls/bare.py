"""Answers that are nothing but JSON of calls, without any tag around them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from safe_integrations.calls.scanner import CallScanner

_KEYS: Final = frozenset({"name", "type", "id", "arguments", "parameters"})
_FENCE: Final = re.compile(r"```(?:json)?\s*(.*?)\s*(?:```)?", re.S)
_OPENING: Final = re.compile(r"\s*(?:```(?:json)?\s*)?\[?\s*")
_FIRST: Final = re.compile(r'\{\s*(?:"(?P<key>\w*)(?P<end>"\s*(?::\s*"(?P<name>[^"\\]*)")?)?)?')


def may_be_calls(text: str, names: Collection[str]) -> bool:
    """Whether a text may grow into an answer that is nothing but calls of known tools."""
    opening = _OPENING.match(text)
    at = opening.end() if opening else 0
    first = _FIRST.match(text, at)
    if first is None or first["end"] is None:
        return "```json".startswith(text.lstrip()) or (first.end() if first else at) == len(text)
    return first["key"] in _KEYS and (first["key"] != "name" or first["name"] in (None, *names))


def begins_call(text: str, names: Collection[str]) -> bool:
    """Whether a text begins with a call of a known tool."""
    first = _FIRST.match(text.lstrip())
    return first is not None and first["key"] == "name" and first["name"] in names


def calls_of(text: str, names: Collection[str]) -> list[CallScanner]:
    """The calls of an answer that is nothing but calls of known tools; else none.

    Several calls may stand in a list, or one after another with `;`, `,` or white space between.
    """
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    text = fenced[1] if fenced else text
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    calls: list[CallScanner] = []
    while text := text.lstrip("; ,\t\r\n"):
        call = CallScanner()
        text = call.take(text) if text.startswith("{") else text
        try:
            call.result()
        except ValueError:
            return []
        calls.append(call)
    return calls if all(call.name in names for call in calls) else []
