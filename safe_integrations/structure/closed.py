"""Which objects may have keys that their schema does not list."""

from __future__ import annotations

from typing import Any, Final

_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_LISTS: Final = ("anyOf", "oneOf", "items", "prefixItems")
_SCHEMAS: Final = ("items", "additionalItems", "additionalProperties")
_OPEN: Final = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "$ref"}
    | {"allOf", "anyOf", "oneOf"}
)
"""Where a schema has one of these beside its properties, other keys are spoken of elsewhere."""


def closed(schema: Any) -> Any:
    """A JSON schema whose objects take no further keys, unless it speaks of such keys itself.

    A small model that may invent keys invents them. Objects whose properties are not listed are
    left open, and so is what describes an object only in part, such as the schemas of an `allOf`.
    """
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            result[key] = {name: closed(part) for name, part in value.items()}
        elif key in ("anyOf", "oneOf") and "properties" in schema:
            continue
        elif key in _LISTS and isinstance(value, list):
            result[key] = [closed(part) for part in value]
        elif key in _SCHEMAS:
            result[key] = closed(value)
    if isinstance(schema.get("properties"), dict) and not _OPEN & schema.keys():
        result["additionalProperties"] = False
    return result
