r"""JSON schemas as rules of a grammar.

JSON is written on one line, as Python's `json.dumps` does (`{"a": 1, "b": [1, 2]}`), properties in
the order of the schema. So a model cannot get lost in white space, and braces, keys and separators
are forced text that no model has to be asked for. `\uXXXX` escapes are not written: a key spelled
with them would escape the schema's rules for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.structure.constraint import refusal

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

_SCHEMA_KEYS: Final = ("items", "additionalProperties", "additionalItems")
_SCHEMA_LISTS: Final = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
_SCHEMA_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")


def json_rule(schema: Any, argument: str) -> str:
    """A JSON schema as the right side of a Lark rule.

    Args:
        schema: The schema.
        argument: The argument that errors blame.

    Raises:
        InvalidArgumentError: The schema cannot be guaranteed; the message names the part.
        MissingDependencyError: `llguidance` is not installed.
    """
    schema = _prepared(schema, argument)
    parts = dict(_parts(schema, "#"))
    message = _complaint(schema, schema)
    if message is not None:  # parts stand behind what they are parts of: the smallest one
        at = next(at for at in reversed(parts) if _complaint(parts[at], schema) == message)
        raise _refused(argument, at, parts[at], message)
    for at, part in parts.items():  # what the library accepts without keeping it
        wanted = part.get("minProperties", 0)
        if isinstance(wanted, int) and wanted > len(set(part.get("required", ()))) + 1:
            message = "more than one key beyond the required ones cannot be guaranteed to differ"
            raise _refused(argument, at, part, message)
        literals = [part.get(key) for key in ("const", "enum", "required")]
        literals.append(list(part.get("properties", ())))
        if _UNWRITABLE.search(json.dumps(literals, ensure_ascii=False)):
            raise _refused(argument, at, part, "control characters are not written")
    return _json(schema)


def _prepared(schema: Any, argument: str) -> dict[str, Any]:
    """A copy in our style, with references that the library can read."""
    if not isinstance(schema, dict):
        raise InvalidArgumentError(argument, schema, "pass a JSON schema as a dict")
    try:
        schema = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(argument, schema, f"pass plain JSON data: {error}") from None
    for _, part in _parts(schema, "#"):
        if isinstance(part.get("$ref"), str):
            part["$ref"] = quote(part["$ref"], safe="#/:?&=%~!$'()*+,;@-._")
        part.update(_bounds(part))
    return {**schema, "x-guidance": _STYLE}


def _bounds(part: dict[str, Any]) -> dict[str, Any]:
    """What numbers are held to where a schema does not say: else digits need never end.

    Integers have 64 bits; numbers 17 digits in front of the point and 10 behind it, as a double
    can tell them apart.
    """
    kinds = part.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    real = "number" in kinds
    said = [part.get(key) for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")]
    most = _NUMBER if real else _INTEGER
    huge = any(isinstance(bound, int | float) and abs(bound) >= most for bound in said)
    if huge or not (real or "integer" in kinds) or part.keys() & {"enum", "const"}:
        return {}
    bounds: dict[str, Any] = {}
    if said[:2] == [None, None]:
        bounds["minimum"] = -most
    if said[2:] == [None, None]:
        bounds["maximum"] = most
    if real and "multipleOf" not in part:
        bounds["multipleOf"] = _PLACES
    return bounds


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
            children += [(f"{key}/{name}", child) for name, child in schema[key].items()]
    for path, child in children:
        yield from _parts(child, f"{at}/{path}")


def _complaint(part: dict[str, Any], root: dict[str, Any]) -> str | None:
    """What the library says against a part of a schema."""
    shared: dict[str, Any] = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return refusal("start: " + _json({**shared, **part}))


def _refused(argument: str, at: str, part: dict[str, Any], message: str) -> InvalidArgumentError:
    given = {key: value for key, value in part.items() if key != "x-guidance"}
    return InvalidArgumentError(argument, given, f"cannot be guaranteed at {at}: {message}")


def _json(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps(schema, ensure_ascii=False)
