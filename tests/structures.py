"""200 JSON schemas in the spread of real ones, each with whether a grammar enforces all of it.

Ten kinds of objects around twenty kinds of values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_OBJECT: Schema = {"type": "object"}
_TEXT: Schema = {"type": "string", "maxLength": 8}
_SMALL: Schema = {"type": "integer", "minimum": 0, "maximum": 99}
_PAIR: Schema = {**_OBJECT, "properties": {"a": _SMALL, "b": _SMALL}, "additionalProperties": False}


def _tagged(tag: str, **more: Schema) -> Schema:
    properties = {"kind": {"const": tag}, **more}
    return {
        **_OBJECT,
        "properties": properties,
        "required": ["kind"],
        "additionalProperties": False,
    }


_ENFORCED: dict[str, Schema] = {
    "text": _TEXT,
    "bounds": {"type": "number", "minimum": -1, "exclusiveMaximum": 10},
    "enum": {"enum": ["rot", "grün", 1, None, 'a"b']},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "unknown format": {"type": "string", "format": "colour", "maxLength": 5},
    "list": {"type": "array", "items": _SMALL, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [_SMALL, _TEXT], "items": False, "minItems": 2},
    "one of tagged": {"oneOf": [_tagged("x", a=_SMALL), _tagged("y", a=_TEXT)]},
    "one of by presence": {**_PAIR, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 3, "maximum": 7}]},
    "few that differ": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
    "named": {**_OBJECT, "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": _SMALL},
    "dependent": {**_PAIR, "dependentRequired": {"a": ["b"]}},
    "by pattern": {
        **_OBJECT,
        "patternProperties": {"^x": _SMALL},
        "additionalProperties": False,
        "maxProperties": 1,
    },
}
_CHECKED: dict[str, Schema] = {
    "not": {"type": "integer", "minimum": 0, "maximum": 99, "not": {"const": 7}},
    "condition": {**_PAIR, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "that differ": {"type": "array", "items": _SMALL, "uniqueItems": True, "maxItems": 4},
    "one of that overlap": {"oneOf": [_SMALL, {"type": "number", "minimum": 50, "maximum": 60}]},
    "holds": {"type": "array", "items": _SMALL, "contains": {"const": 7}, "maxItems": 3},
}


def _around(value: Schema) -> Iterator[tuple[str, Schema]]:
    """Schemas that hold a value; the value's own rules decide whether all of it is enforced."""
    closed = {**_OBJECT, "additionalProperties": False}
    reference = {"$ref": "#/$defs/part"}
    yield "alone", value
    yield "required", {**closed, "properties": {"v": value, "größe": _TEXT}, "required": ["v"]}
    yield "optional", {**closed, "properties": {"n": _SMALL, "v": value}}
    yield "inside", {**closed, "properties": {"o": {**closed, "properties": {"v": value}}}}
    yield "items", {"type": "array", "items": value, "maxItems": 2}
    yield "alternative", {"anyOf": [{"type": "null"}, value]}
    yield "rest", {**_OBJECT, "properties": {"n": _SMALL}, "additionalProperties": value}
    yield "reference", {**closed, "properties": {"v": reference}, "$defs": {"part": value}}
    yield "described", {"title": "T", "description": "D", "allOf": [value], "examples": [1]}
    recursive = {**closed, "properties": {"v": value, "next": {"$ref": "#/$defs/part"}}}
    yield "recursion", {"$ref": "#/$defs/part", "$defs": {"part": recursive}}


SCHEMAS: dict[str, tuple[Schema, bool]] = {
    f"{name}, {place}": (schema, is_enforced)
    for values, is_enforced in ((_ENFORCED, True), (_CHECKED, False))
    for name, value in values.items()
    for place, schema in _around(value)
}
