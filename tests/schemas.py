"""Varied JSON schemas, made from a seed: nesting, enums, bounds, unicode names, $ref, options."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["name", "age", "größe", "город", "名前", "is_open", "tags", "price €", "id", "emoji 😀"]


def schema(seed: int) -> dict[str, Any]:
    """A schema of an object; small enough that an answer fits some hundred tokens."""
    rng = random.Random(seed)
    made = _object(rng, depth=2)
    if seed % 4 == 0:
        made["$defs"] = {"part": _object(rng, depth=0)}
        made["properties"]["first"] = {"$ref": "#/$defs/part"}
        made["required"].append("first")
    return made


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(1, 3))
    required = [name for name in names if rng.random() < 0.7] or names[:1]
    return {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _enum, _constant, _boolean, _choice]
    if depth > 0:
        kinds += [lambda r: _object(r, depth - 1), lambda r: _array(r, depth - 1)] * 2
    return rng.choice(kinds)(rng)


def _string(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": "string", "pattern": rng.choice(["^[A-Z]{2}[0-9]{3}$", "^(yes|no)$"])}
    return {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(4, 16)}


def _integer(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 100)}


def _number(rng: random.Random) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "exclusiveMaximum": rng.randint(1, 100)}


def _enum(rng: random.Random) -> dict[str, Any]:
    return {"enum": rng.sample(["rot", "grün", "青", "blue", 1, None, True, 'a"b'], 3)}


def _constant(rng: random.Random) -> dict[str, Any]:
    return {"const": rng.choice(["fixed", 42, ["a", 1], {"k": "v"}])}


def _boolean(_: random.Random) -> dict[str, Any]:
    return {"type": "boolean"}


def _choice(rng: random.Random) -> dict[str, Any]:
    return {"anyOf": [{"type": "null"}, _integer(rng)]}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    items = _value(rng, depth)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 1}
