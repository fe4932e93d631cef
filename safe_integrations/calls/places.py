"""Where names and arguments stand in calls, so that what the budget cut of them can be named."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Final

from safe_integrations.calls.form import SLOTS, Form
from safe_integrations.calls.source import Source
from safe_integrations.calls.values import gemma_value, python_value
from safe_integrations.structure.closing import Place, json_lines

_KEY: Final = r"([^\x00-\x20<>\"'=:(){}\[\],|&]+)"
_VALUES: Final = {"gemma": gemma_value, "python": python_value}


def places_of(form: Form, text: bytes) -> list[Place]:
    """The places of an answer that holds calls of a form, or else JSON.

    Pointers are those of a call as a JSON object: `/name`, `/arguments/<key>`.
    """
    view, at = text.decode("latin-1"), 0  # one character a byte
    before, between, _ = (_pattern(part, form.loose) for part in form.around)
    opening = _pattern(form.opening + form.around_calls[0], form.loose)
    again = f"|{_pattern(form.joint, form.loose)}" if form.section else ""
    head = re.compile(rf"(?:{opening}{again}){before}([\w.-]+){between}", re.ASCII)
    found: list[Place] = []
    while call := head.search(view, at):
        at = call.end()
        inside = list(_arguments(form, view, at))
        found += [("/name", *call.span(1)), *inside]
        at = max([at, *(end for _, _, end in inside)])
    return found or json_lines(text)


def _arguments(form: Form, view: str, at: int) -> Iterator[Place]:
    if form.is_json:
        try:
            yield "/arguments", at, json.JSONDecoder().raw_decode(view, at)[1]
        except ValueError:  # it breaks off
            pass
        return
    before, between, after = (_pattern(part, form.loose) for part in form.around_value)
    head = re.compile(rf"(?:{_pattern(form.comma)})?{before}{_KEY}{between}")
    while key := head.match(view, at):
        start = key.end()
        if form.kind == "raw":
            end = re.compile(after).search(view, start)
            at, last = end.span()[::-1] if end else (start, start)
        else:
            source = Source()
            source.rest, source.ended = view[start:], True
            try:
                deque(_VALUES[form.kind](source), maxlen=0)
            except ValueError:  # it breaks off
                return
            at = last = len(view) - len(source.rest)
        yield f"/arguments/{key[1].replace('~', '~0').replace('/', '~1')}", start, last


def _pattern(text: str, loose: bool = False) -> str:
    """A text of a form as a regular expression, one character a byte."""
    pattern = re.escape(text.encode().decode("latin-1"))
    for slot, inside in SLOTS.items():
        pattern = pattern.replace(re.escape(slot), f"(?:{inside})")
    return pattern.replace("\\\n", "\\\n?") if loose else pattern
