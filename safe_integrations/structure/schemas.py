r"""JSON schemas as rules of a grammar.

JSON is written on one line, as Python's `json.dumps` does (`{"a": 1, "b": [1, 2]}`), properties in
the order of the schema. So a model cannot get lost in white space, and braces, keys and separators
are forced text that no model has to be asked for. `\uXXXX` escapes are not written: a key spelled
with them would escape the schema's rules for it.

Keywords that the grammar does not know are said otherwise where that is the same
(`structure.rewriting`); what is left of them is checked on the finished answer
(`structure.checking`).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from safe_integrations.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    UnenforcedSchemaWarning,
)
from safe_integrations.structure.checking import complaint, schema_complaint
from safe_integrations.structure.closing import BYTES
from safe_integrations.structure.constraint import Constraint, refusal
from safe_integrations.structure.rewriting import FORMATS, SAID, also, rewrite

_STYLE: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}

_UNWRITABLE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u|\x7f")
"""A character in JSON text that only a `\\uXXXX` escape can write."""

_INTEGER: Final = 2**63 - 1024  # the largest of 64 bits that is a double, as the library wants it
_NUMBER: Final = 10**17
_PLACES: Final = 1e-10
_NUMERIC: Final = {"type", "multipleOf", "minimum", "maximum"}
_ALIKE: Final = 4
"""From how many numbers with the same bounds on they are defined once."""

_SCHEMA_KEYS: Final = ("items", "additionalProperties", "additionalItems")
_SCHEMA_LISTS: Final = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
_SCHEMA_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")

_UNKNOWN: Final = {  # keywords that the library does not know -> those that only go with them
    "if": ("then", "else"),
    "contains": ("minContains", "maxContains"),
    **dict.fromkeys(("not", "uniqueItems", "propertyNames", "$dynamicRef", "$recursiveRef"), ()),
    **dict.fromkeys(("dependencies", "dependentRequired", "dependentSchemas"), ()),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), ()),
}
_RULES: Final = {
    *_UNKNOWN,
    *("type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "then", "else"),
    *("properties", "required", "additionalProperties", "patternProperties"),
    *("minProperties", "maxProperties", "items", "prefixItems", "additionalItems"),
    *("minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "multipleOf"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minContains", "maxContains"),
}
_FORMATS: Final = frozenset(
    ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
)
"""What the library enforces."""

_CHECKED_FORMATS: Final = frozenset(
    ("idn-email", "idn-hostname", "json-pointer", "regex", "relative-json-pointer")
)
"""What can be checked; any other format is an annotation, as the standard has it."""

_TOO_LARGE: Final = re.compile("too (large|big)|stack level")
_WORK: Final = 400_000
"""Characters of a schema times the keywords that are looked for one by one."""

_NAMED: Final = 10
"""Keywords that a warning names."""

_HOPELESS: Final = re.compile("^Unsatisfiable|^Invalid type|does not exist|not present in a reg")
"""What the library says of schemas that no answer can be held to, nor be checked against."""

_NOT_STRICT: Final = "cannot be guaranteed at {}: {}; leave out strict to allow it"

Checked = tuple[tuple[str, str], ...]
"""JSON pointer and keyword of parts of a schema that no grammar enforces."""


@dataclass(frozen=True, slots=True)
class Split:
    """What a grammar enforces of a schema, and what is left to check.

    Attributes:
        enforced: The schema that the grammar is made of.
        checked: Everything else in the schema.
    """

    enforced: str
    checked: Checked


class _UnusableError(Exception):
    """Pointer, part and message of a part of a schema that no answer can be held to."""


def json_rule(schema: Any, argument: str, strict: bool | None = None) -> str:
    """A JSON schema as the right side of a Lark rule.

    Args:
        schema: The schema.
        argument: The argument that errors blame.
        strict: What to do where parts can only be checked on the finished answer: True refuses the
            schema, None warns of it, once.

    Raises:
        InvalidArgumentError: The schema cannot be guaranteed; the message names the part.
        MissingDependencyError: `llguidance` is not installed, or `jsonschema` where it is needed.
    """
    found = split(schema, argument)
    if strict and not found.checked and smallest(found) is None:
        remedy = "no text is known that ends an answer, so it may break off"
        raise InvalidArgumentError(argument, schema, _NOT_STRICT.format("#", remedy))
    announce(found.checked, argument, schema, strict)
    return f"%json {found.enforced}"


def announce(checked: Checked, argument: str, schema: Any, strict: bool | None) -> None:
    """Says that parts of a schema can only be checked; see `json_rule`.

    Raises:
        InvalidArgumentError: There are such parts, and `strict`.
    """
    if checked and strict:
        at, keyword = checked[0]
        reason = f"{keyword} can only be checked on the finished answer"
        raise InvalidArgumentError(argument, schema, _NOT_STRICT.format(at, reason))
    if checked and strict is None:
        _warn(checked)


@lru_cache(maxsize=256)
def smallest(found: Split) -> str | None:
    """A short text that follows what is enforced; None where none is known."""
    constraint = Constraint(f"start: %json {found.enforced}", "schema", found.enforced)
    text = constraint.cursor(BYTES).closing(b"")
    return None if text is None else text.decode()


def split(schema: Any, argument: str) -> Split:
    """Splits a schema into what is enforced and what is checked; once per process and schema.

    Args:
        schema: The schema.
        argument: The argument that errors blame.

    Raises:
        InvalidArgumentError: No answer can be held to the schema; the message names the part.
        MissingDependencyError: `llguidance` is not installed, or `jsonschema` where it is needed.
    """
    if not isinstance(schema, dict):
        raise InvalidArgumentError(argument, schema, "pass a JSON schema as a dict")
    try:
        plain = deepcopy(schema)
        for _, part in _parts(plain, "#"):
            for keyword in SAID & part.keys():  # a default may be inf
                del part[keyword]
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(argument, schema, f"pass plain JSON data: {error}") from None
    found = _split(text)
    if isinstance(found, _UnusableError):
        at, part, message = found.args
        given = {key: value for key, value in part.items() if key != "x-guidance"}
        raise InvalidArgumentError(argument, given, f"cannot be guaranteed at {at}: {message}")
    return found


@lru_cache(maxsize=256)
def _split(text: str) -> Split | _UnusableError:
    """Splits a schema in JSON. Takes seconds for the largest, in which nobody else has to wait."""
    try:
        return _made(text, bounded=True)
    except _UnusableError:
        pass
    try:  # what our bounds leave nothing of
        return _made(text, bounded=False)
    except _UnusableError as error:
        return error.with_traceback(None)


def _made(text: str, bounded: bool) -> Split:
    schema = json.loads(text)
    checked: list[tuple[str, str]] = []
    for at, part in _parts(schema, "#"):  # a part comes before those inside it
        if isinstance(part.get("$ref"), str):
            part["$ref"] = quote(part["$ref"], safe="#/:?&=%~!$'()*+,;@-._")
        rewrite(part, schema)
        checked += [(at, keyword) for keyword in _without_unknown(part)]
        if bounded:
            _bound(part, '"multipleOf"' in text)
    if bounded:
        _share_numbers(schema)
    schema["x-guidance"] = _STYLE
    repairs = 0
    while (message := _complaint(schema)) is not None:
        repairs += 1
        blamed = _blamed(schema, message, repairs * len(text) < _WORK)
        if not blamed or _HOPELESS.search(message):
            at = blamed[-1][0] if blamed else "#"
            raise _UnusableError(at, dict(_parts(schema, "#"))[at], message)
        checked += blamed
        schema = _relaxed(schema, blamed)
    for at, part in _parts(schema, "#"):  # what the library accepts and cannot write
        literals = [part.get(key) for key in ("const", "enum", "required")]
        literals.append(list(part.get("properties", ())))
        if _UNWRITABLE.search(json.dumps(literals, ensure_ascii=False)):
            raise _UnusableError(at, part, "control characters are not written")
    if checked and (problem := schema_complaint(json.loads(text))) is not None:
        at, keyword = checked[0]
        message = f"{keyword} can only be checked, and the schema is none: {problem}"
        raise _UnusableError(at, dict(_parts(json.loads(text), "#")).get(at, {}), message)
    return Split(json.dumps(schema, ensure_ascii=False), tuple(checked))


def _without_unknown(part: dict[str, Any]) -> Iterator[str]:
    """Takes out what the library does not know; tells what of it is left to check."""
    for keyword, besides in _UNKNOWN.items():
        rest = [part.pop(name) for name in besides if name in part]
        if keyword in part:
            empty = keyword not in ("not", "uniqueItems")  # what says nothing there
            if part.pop(keyword) is not empty and (rest or keyword != "if"):
                yield keyword
    if part.get("format", "date") not in _FORMATS and part.pop("format") in _CHECKED_FORMATS:
        yield "format"
    least, required = part.get("minProperties", 0), part.get("required", ())
    most = len(set(map(str, required))) + 1 if isinstance(required, list) else 1
    if isinstance(least, int) and least > most:  # the grammar does not see whether keys differ
        part["minProperties"] = most
        yield "minProperties"


def enforced_keywords(schema: dict[str, Any], found: Split) -> dict[str, list[str]]:
    """By the JSON pointer of every part of a schema: its keywords that the grammar enforces."""
    return {
        at: [
            keyword
            for keyword in part
            if keyword in _RULES and (at, keyword) not in found.checked
            if keyword != "format" or part["format"] in (*_FORMATS, *FORMATS)
        ]
        for at, part in _parts(schema, "#")
    }


def _bound(part: dict[str, Any], in_steps: bool) -> None:
    """Holds numbers to bounds where a schema has none, or wider ones: else digits need never end.

    Integers have 64 bits; numbers 17 digits in front of the point and 10 behind it, as a double
    can tell them apart. `in_steps`: the schema has a `multipleOf`; the library errs over two that
    have no small common multiple.
    """
    kinds = part.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    real = "number" in kinds
    if not (real or "integer" in kinds) or part.keys() & {"enum", "const"}:
        return
    most = _NUMBER if real else _INTEGER
    if real and not in_steps:
        part["multipleOf"] = _PLACES
    step: Any = part.get("multipleOf")
    for side, sign in (("minimum", -1), ("maximum", 1)):
        exclusive = f"exclusive{side.capitalize()}"
        edge: Any = part.get(side) if part.get(exclusive) is True else part.get(exclusive)
        if (
            real
            and exclusive in part
            and _is_number(edge)
            and _is_number(step)
            and (edge == 0 or (step == _PLACES and edge == round(edge) and abs(edge) < 1e5))
            and (part[exclusive] is True or side not in part)
        ):
            del part[exclusive]  # the library takes 0 for more than 0 and less than 1/2
            part[side] = edge - sign * step
        said = {n: part[n] for n in (side, exclusive) if _is_number(part.get(n))}
        if not said or any(sign * bound > most for bound in said.values()):
            part.update({n: sign * most for n in said or (side,)})


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _share_numbers(schema: dict[str, Any]) -> None:
    """Numbers with the same bounds become one definition: the library compiles each by itself."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for at, part in _parts(schema, "#"):
        if at != "#" and isinstance(part.get("$id", part.get("id")), str):
            return  # references inside it mean something else
        if part.keys() <= _NUMERIC and part.get("type") in ("integer", "number"):
            alike.setdefault(json.dumps(part, sort_keys=True), []).append(part)
    many = [parts for parts in alike.values() if len(parts) >= _ALIKE]
    if many:
        schema["x-numbers"] = [dict(parts[0]) for parts in many]
    for nth, parts in enumerate(many):
        for part in parts:
            part.clear()
            part["$ref"] = f"#/x-numbers/{nth}"


def _parts(schema: Any, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all schemas inside it, each with its JSON pointer; definitions come last."""
    if not isinstance(schema, dict):
        return
    yield at, schema
    children = [(key, schema.get(key)) for key in _SCHEMA_KEYS]
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            children += [(f"{key}/{i}", child) for i, child in enumerate(schema[key])]
    for key in _SCHEMA_MAPS:
        if isinstance(schema.get(key), dict):
            children += [(f"{key}/{_escaped(name)}", part) for name, part in schema[key].items()]
    for path, child in children:
        yield from _parts(child, f"{at}/{path}")


def _escaped(name: str) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def _complaint(schema: dict[str, Any]) -> str | None:
    """What the library says against a schema."""
    return refusal("start: %json " + json.dumps(schema, ensure_ascii=False))


def _blamed(schema: dict[str, Any], message: str, exactly: bool) -> list[tuple[str, str]]:
    """The keywords that the library complains of; by bisection, those inside before others.

    Where size is the complaint, or where time is short, all that lie as deep as the one to blame.
    """
    parts = list(_parts(schema, "#"))
    several = [(at, "oneOf") for at, part in parts if "oneOf" in part]
    if message.startswith("oneOf") and several:  # else it would tell one after the other
        return several
    picks = [(at, key) for at, part in reversed(parts) for key in part if key in _RULES]
    picks.sort(key=lambda pick: (-pick[0].count("/"), pick[1] == "type"))
    low, high = 0, len(picks)  # without picks[:low] it still complains
    while low + 1 < high:
        middle = (low + high) // 2
        if _complaint(_relaxed(schema, picks[:middle])) == message:
            low = middle
        else:
            high = middle
    return picks[high - 1 : high] if exactly and not _TOO_LARGE.search(message) else picks[:high]


def _relaxed(schema: dict[str, Any], picks: list[tuple[str, str]]) -> dict[str, Any]:
    """A copy without some keywords; one of several becomes any of them."""
    relaxed: dict[str, Any] = json.loads(json.dumps(schema))
    parts = dict(_parts(relaxed, "#"))
    for at, keyword in picks:
        rule = parts[at].pop(keyword, None)
        if keyword == "oneOf":
            also(parts[at], {"anyOf": rule})
        if keyword in ("properties", "patternProperties"):  # or it would rule these as well
            parts[at].pop("additionalProperties", None)
    return relaxed


@lru_cache(maxsize=1024)
def _warn(checked: Checked) -> None:
    named = ", ".join(f"{keyword} at {at}" for at, keyword in checked[:_NAMED])
    if len(checked) > _NAMED:
        named += f" and {len(checked) - _NAMED} more"
    message = f"not enforced, only checked on the finished answer: {named}"
    warnings.warn(message, UnenforcedSchemaWarning, stacklevel=4)


def violation(schema: dict[str, Any], value: Any) -> str | None:
    """Which part of its schema a finished value breaks, as a sentence; None where it breaks none.

    Only parts that the grammar does not enforce can be broken.

    Args:
        schema: The schema that the value was written by.
        value: JSON data.
    """
    try:
        checked = split(schema, "schema").checked
    except (InvalidArgumentError, MissingDependencyError):  # then it was nobody's rule
        return None
    return complaint(schema, value) if checked else None
