"""Values of parameters that are written one by one, and so need not be JSON."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Generator, Mapping
from typing import Any, Final

from safe_integrations.calls.form import QUOTE, dumps
from safe_integrations.calls.source import Source

TYPES: Final = frozenset(("string", "integer", "number", "boolean", "null", "array", "object"))

_NAMES: Final[dict[type, str]] = {
    **{str: "string", bool: "boolean", int: "integer", float: "number"},
    **{type(None): "null", list: "array", dict: "object"},
}
_DEPTH: Final = 16
"""How far references are followed."""

_BRACKETS: Final = ("(", "[", "{", ")", "]", "}")
_GEMMA_KEY: Final = re.compile(r"([^\s,:]+)\s*:")


def types_of(schema: Any, root: Mapping[str, Any], depth: int = _DEPTH) -> frozenset[str]:
    """Which types a schema allows, as far as it says so: a subset of `TYPES`.

    Args:
        schema: The schema of a value.
        root: What its references point into.
        depth: How far they are followed.
    """
    if not isinstance(schema, Mapping) or depth == 0:
        return TYPES
    allowed = TYPES
    if "type" in schema:
        said = schema["type"]
        allowed &= set(said) if isinstance(said, list) else {said}
    if "number" in allowed:
        allowed |= {"integer"}
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if isinstance(values, list):
            allowed &= {_NAMES.get(type(value), "object") for value in values}
    if isinstance(schema.get("$ref"), str):
        allowed &= types_of(resolve(schema["$ref"], root), root, depth - 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [types_of(part, root, depth - 1) for part in schema[key]]
            allowed &= frozenset().union(*parts)
    for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        allowed &= types_of(part, root, depth - 1)
    return frozenset(allowed)


def resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """The schema that a reference points to; a schema of anything where it leads elsewhere."""
    part: Any = root
    for key in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
        name = key.replace("~1", "/").replace("~0", "~")
        part = part.get(name) if isinstance(part, Mapping) else None
    return part if reference.startswith("#") and part is not None else {}


Value = tuple[Any, str]
"""A value as data, and as JSON text."""


def read_value(text: str, types: frozenset[str]) -> Value:
    """A value out of its text. Where it may be a string it is one, unless it fits another type.

    Args:
        text: The text between the tags of a value.
        types: What the value may be.

    Raises:
        ValueError: It may not be a string, and is no JSON.
    """
    if types == {"string"}:
        return text, dumps(text)
    try:
        value, written = read_data(text)
    except ValueError:
        if "string" in types:
            return text, dumps(text)
        raise
    if "string" in types and _NAMES[type(value)] not in types - {"string"}:
        return text, dumps(text)
    return value, written


def in_string(text: str) -> bool:
    """Whether a text is JSON that breaks off inside a string."""
    quotes = len(re.findall(r'"', re.sub(r"\\.", "", text, flags=re.DOTALL)))
    return text.lstrip()[:1] in ("[", "{", '"') and quotes % 2 == 1


def read_data(text: str) -> Value:
    """JSON data out of JSON, or of a literal of Python as some templates write them.

    Raises:
        ValueError: It is neither.
    """
    for strict in (True, False):  # control characters in strings, which models write
        try:
            value = json.loads(text, strict=strict, parse_constant=_refuse)
            return value, text.strip() if strict else _written(value)
        except (ValueError, RecursionError):
            pass
    try:
        written = _written(ast.literal_eval(text.strip()))
        return json.loads(written), written
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{text.strip()[:80]} is not JSON") from None


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def gemma_value(source: Source) -> Generator[None, None, Value]:
    """Takes a value of Gemma 4's, up to the comma or bracket behind it.

    Raises:
        ValueError: It is none.
        CutOffError: The answer ends before it does.
    """
    parts, depth = [], 0
    while True:
        text = yield from source.until(QUOTE, *_BRACKETS, ",")
        parts.append(_GEMMA_KEY.sub(lambda key: dumps(key[1]) + ":", text))
        if source.rest.startswith(QUOTE):
            source.pop(len(QUOTE))
            text = yield from source.until(QUOTE)
            source.pop(len(QUOTE))
            parts.append(dumps(text))
            continue
        if depth == 0 and source.rest[0] in ",)]}":
            return read_data("".join(parts))
        depth += (source.rest[0] in "([{") - (source.rest[0] in ")]}")
        parts.append(source.pop(1))


def python_value(source: Source) -> Generator[None, None, Value]:
    """Takes a literal of Python, or JSON, up to the comma or bracket behind it.

    Raises:
        ValueError: It is none.
        CutOffError: The answer ends before it does.
    """
    parts, depth = [], 0
    while True:
        parts.append((yield from source.until("'", '"', *_BRACKETS, ",")))
        mark = source.rest[0]
        if mark in "'\"":
            parts.append(source.pop(1))
            while True:
                parts.append((yield from source.until(mark, "\\")))
                if source.rest[0] == mark:
                    break
                while len(source.rest) < 2 and not source.ended:
                    yield
                parts.append(source.pop(2))
        elif depth == 0 and mark in ",)]}":
            return read_data("".join(parts))
        depth += (mark in "([{") - (mark in ")]}")
        parts.append(source.pop(1))
