"""JSON schemas said otherwise: keywords that the grammar does not know, in those that it knows.

Every function takes one part of a schema and changes it in place. What it says stays the same to
the letter, or the keyword is left where it is.
"""

from __future__ import annotations

import json
import re
from itertools import combinations, permutations
from typing import Any, Final

from safe_integrations.structure.classes import LOCAL_TIME

Schema = dict[str, Any]

_MANY: Final = 400
"""Alternatives that one keyword may become."""

_DEPTH: Final = 4
"""How far references and compositions are followed."""

_HEX: Final = "[0-9a-fA-F]"
_BASE64: Final = "^(?:[{0}]{{4}})*(?:[{0}]{{2}}==|[{0}]{{3}}=)?$"
_PATTERNS: Final = {
    "base64": _BASE64.format("A-Za-z0-9+/"),
    "base64url": _BASE64.format("A-Za-z0-9_-"),
    LOCAL_TIME: r"^[1-9]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|[12]\d))"
    r"T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?$",
    **{
        f"uuid{n}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{n}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}$"
        for n in (1, 3, 4, 5, 6, 7, 8)
    },
}
_BYTE: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = {"pattern": rf"^(?:{_BYTE}\.){{3}}{_BYTE}/(?:3[0-2]|[12]?[0-9])$"}
_IPV6: Final = {
    "pattern": rf"^{_HEX}{{0,4}}(?::{_HEX}{{0,4}}){{2,7}}/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])$"
}
FORMATS: Final[dict[str, list[Schema]]] = {
    **{name: [{"pattern": pattern}] for name, pattern in _PATTERNS.items()},
    "ipvanyaddress": [{"format": "ipv4"}, {"format": "ipv6"}],
    "ipvanyinterface": [{"format": "ipv4"}, {"format": "ipv6"}, _IPV4, _IPV6],
    "ipv4interface": [{"format": "ipv4"}, _IPV4],
    "ipv6interface": [{"format": "ipv6"}, _IPV6],
    "ipvanynetwork": [{"format": "ipv4"}, {"format": "ipv6"}, _IPV4, _IPV6],
    "ipv4network": [{"format": "ipv4"}, _IPV4],
    "ipv6network": [{"format": "ipv6"}, _IPV6],
}
"""Formats of pydantic's, in what the library knows; of networks pydantic wants yet more."""


_CLASS: Final = re.compile(r"\\.|\[\^?(?:[^]\\]|\\.)*\]", re.S)
"""A class of characters in a pattern, or an escape outside one."""

SAID: Final = {"title", "description", "$comment", "default", "examples"}
"""Keywords that rule nothing."""

_NAMES: Final[dict[type, str]] = {
    **{type(None): "null", bool: "boolean", int: "integer", float: "number"},
    **{str: "string", list: "array", dict: "object"},
}
_TYPES: Final = set(_NAMES.values())
_FORMS: Final[dict[str, Any]] = {
    **dict.fromkeys(("required", "allOf", "anyOf", "oneOf", "enum"), list),
    **dict.fromkeys(("properties", "patternProperties"), dict),
    **dict.fromkeys(("minItems", "maxItems", "minProperties", "maxProperties"), int),
    **dict.fromkeys(("minLength", "maxLength"), int),
    "type": str | list,
}


_ALONE: Final = {"anyOf", "required", "enum", "pattern", "format"}
"""Keywords that say the same beside any others."""


def rewrite(part: Schema, root: Schema) -> None:
    """Says one part of a schema, but not the parts inside it, in what the grammar knows."""
    if not well_formed(part):
        return
    for step in (_alone, _format, _dependencies, _names, _unique, _one_of):
        step(part, root)
    if isinstance(part.get("pattern"), str):
        part["pattern"] = _CLASS.sub(_plain_class, part["pattern"])
    if "patternProperties" in part:
        rules = part["patternProperties"]
        part["patternProperties"] = {_CLASS.sub(_plain_class, key): rules[key] for key in rules}


def _plain_class(match: re.Match[str]) -> str:
    r"""A class that means the same to the library: `[` is a character in it, no class inside it.

    `[^...]` leaves out the backspace, too: where a class has all control characters, the library
    lets quote and backslash be written, escaped, whether or not the class has them.
    """
    if match[0][0] == "\\":
        return match[0]
    inside = re.sub(r"(\\.)|\[", lambda m: m[1] or r"\[", match[0][1:-1], flags=re.S)
    if len(inside) > 1:  # `-` is itself at the beginning
        inside = re.sub(r"^\^(-?)", lambda m: r"^\x08" + (r"\-" if m[1] else ""), inside)
    return f"[{inside}]"


def also(part: Schema, *more: Any) -> None:
    """Adds what has to hold as well."""
    for rule in more:
        mixes = not isinstance(rule, dict) or rule.keys() - _ALONE or part.keys() & rule.keys()
        if not mixes and "$ref" not in part:
            part.update(rule)
        else:
            part["allOf"] = [*part.get("allOf", ()), rule]


def _lacks(*names: str) -> Schema:
    """No object that has all of these."""
    options: list[Schema] = [{"properties": {name: False}} for name in names]
    return options[0] if len(options) == 1 else {"anyOf": options}


def _alone(part: Schema, root: Schema) -> None:
    """A reference stands alone where it can: the library does not follow a circle otherwise."""
    target = resolved(part, root)
    if part.keys() == {"$ref", "type"} and isinstance(target, dict):
        if target.get("type") == part["type"]:
            del part["type"]


def _format(part: Schema, root: Schema) -> None:
    options = FORMATS.get(part["format"]) if isinstance(part.get("format"), str) else None
    if options is not None:
        del part["format"]
        also(part, *([{"anyOf": options}] if len(options) > 1 else options))


def _dependencies(part: Schema, root: Schema) -> None:
    """`a` needs `b`: there is no `a`, or there are both."""
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        needs = part.get(keyword)
        if not isinstance(needs, dict) or (len(needs) > 3 and part.keys() & {"anyOf", "oneOf"}):
            continue
        if len(needs) > 8:  # each may double the grammar
            continue
        del part[keyword]
        for name, need in needs.items():
            then = {"required": need} if isinstance(need, list) else need
            if name in part.get("required", ()) and part.get("type") == "object":
                also(part, then)
            elif then not in (True, {}):
                here = {"required": [name]}
                also(part, {"anyOf": [_lacks(name), {"allOf": [here, then]}]})


def _names(part: Schema, root: Schema) -> None:
    """Rules for names, as names or a pattern of them."""
    rule = resolved(part.get("propertyNames"), root)
    if not isinstance(rule, dict):
        return
    named, rest = part.get("properties", {}), part.get("additionalProperties", True)
    told = {k: v for k, v in rule.items() if k not in ("type", *SAID)}
    if rule.get("type", "string") != "string" or "patternProperties" in part:
        return
    values, pattern = literals(rule, root), told.get("pattern")
    if told.keys() <= {"minLength", "maxLength"} and told:
        pattern = f"^(?s:.){{{told.get('minLength', 0)},{told.get('maxLength', '')}}}$"
    if told.keys() <= {"enum", "const"} and values is not None:
        fits = {name: name in values for name in [*named, *filter(_is_text, values)]}
        more: Schema = {"additionalProperties": False}
    elif pattern is not None and (len(told) == 1 or "pattern" not in told):
        found = _compiled(pattern)
        if found is None or (named and rest not in (True, {})):
            return
        fits = {name: found.search(name) is not None for name in named}
        more = {"additionalProperties": False, "patternProperties": {pattern: rest}}
    elif not told:
        fits, more = {}, {}
    else:
        return
    del part["propertyNames"]
    part.update(more)
    if fits:
        part["properties"] = {n: named.get(n, rest) if ok else False for n, ok in fits.items()}


def _unique(part: Schema, root: Schema) -> None:
    """Items that differ: where there are few, all the ways to write them."""
    if part.get("uniqueItems") is False or part.get("maxItems", 2) in (0, 1):
        part.pop("uniqueItems", None)
    if "uniqueItems" not in part or part.get("type") != "array" or "prefixItems" in part:
        return
    items = resolved(part.get("items", True), root)
    values = literals(items, root) if isinstance(items, dict) else None
    if values is None or len(values) > 5 or set(items) - {"enum", "const", "type", *SAID}:
        return
    if not (_kinds(items, values) or set()) <= (_kinds({**items}, None) or _TYPES):
        return
    counts = range(part.get("minItems", 0), min(len(values), part.get("maxItems", _MANY)) + 1)
    ways = [list(way) for n in counts for way in permutations(values, n)]
    if ways and len(ways) <= _MANY:
        for keyword in ("uniqueItems", "items", "minItems", "maxItems", "type"):
            part.pop(keyword, None)
        also(part, {"enum": ways})


def _one_of(part: Schema, root: Schema) -> None:
    """One of several that exclude each other is any of them."""
    options = part.get("oneOf", [])
    if not options or len(options) > 100:
        return
    is_object = part.get("type") == "object"
    if not all(excluded(a, b, root, is_object) for a, b in combinations(options, 2)):
        if not (is_object and all(map(_only_required, options)) and len(options) <= 8):
            return
        options = [
            {"allOf": [option, *(_lacks(*o["required"]) for o in options if o is not option)]}
            for option in options
        ]
    del part["oneOf"]
    also(part, {"anyOf": options})


def resolved(part: Any, root: Schema) -> Any:
    """What a local reference stands for; a part without one is itself.

    What is not formed as a schema is not looked into: it says nothing.
    """
    for _ in range(_DEPTH):
        if not isinstance(part, dict) or not str(part.get("$ref", "")).startswith("#"):
            break
        found: Any = root
        for key in part["$ref"].removeprefix("#").split("/")[1:]:
            found = found.get(key.replace("~1", "/").replace("~0", "~"), {})
            if not isinstance(found, dict):
                break
        part = found
    return part if not isinstance(part, dict) or well_formed(part) else {}


def well_formed(part: Schema) -> bool:
    """Whether what is read here of a part has the types that it should have."""
    return all(isinstance(part[k], kind) for k, kind in _FORMS.items() if k in part) and all(
        isinstance(n, str) for n in part.get("required", ())
    )


def literals(part: Any, root: Schema) -> list[Any] | None:
    """The values that a part allows at most, where they are few; None where they are not."""
    part = resolved(part, root)
    if not isinstance(part, dict):
        return [] if part is False else None
    if "const" in part or isinstance(part.get("enum"), list):
        given = [part["const"]] if "const" in part else part["enum"]
        return list({_key(value): value for value in given}.values())
    known: dict[str, list[Any]] = {"null": [None], "boolean": [False, True]}
    kind = part.get("type")
    return known.get(kind) if isinstance(kind, str) else None


def excluded(a: Any, b: Any, root: Schema, is_object: bool = False, depth: int = _DEPTH) -> bool:
    """Whether nothing can be both, as far as that can be told; `is_object`: of objects."""
    a, b = resolved(a, root), resolved(b, root)
    if a is False or b is False:
        return True
    if depth == 0 or not isinstance(a, dict) or not isinstance(b, dict):
        return False
    values = literals(a, root), literals(b, root)
    if None not in values:
        return not {_key(v) for v in values[0] or ()} & {_key(v) for v in values[1] or ()}
    kinds = _kinds(a, values[0]), _kinds(b, values[1])
    if kinds[0] is not None and kinds[1] is not None and not kinds[0] & kinds[1]:
        return True
    objects = is_object or {"object"} in kinds
    for one, other in ((a, b), (b, a)):
        if any(excluded(part, other, root, objects, depth - 1) for part in one.get("allOf", ())):
            return True
        for options in filter(None, (one.get("anyOf"), one.get("oneOf"))):
            if all(excluded(option, other, root, objects, depth - 1) for option in options):
                return True
        if objects and _missing(one, other, root, depth):
            return True
    return False


def _missing(one: Schema, other: Schema, root: Schema, depth: int) -> bool:
    """Whether `one` requires a property that `other` forbids."""
    mine, others = one.get("properties", {}), other.get("properties", {})
    is_closed = other.get("additionalProperties") is False and "patternProperties" not in other
    return any(
        excluded(mine.get(name, True), others[name], root, depth=depth - 1)
        if name in others
        else is_closed
        for name in one.get("required", ())
    )


def _kinds(part: Schema, values: list[Any] | None) -> set[str] | None:
    """The types that a part allows at most."""
    if values is not None:
        return {
            "integer" if isinstance(v, float) and v.is_integer() else _NAMES[type(v)]
            for v in values
        }
    given = part.get("type")
    kinds = {given} if isinstance(given, str) else set(given) if given else None
    return kinds | {"integer"} if kinds and "number" in kinds else kinds


def _only_required(part: Any) -> bool:
    return (
        isinstance(part, dict) and bool(part.get("required")) and set(part) <= {"required", *SAID}
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _key(value: Any) -> str:
    """What tells JSON values apart: 1.0 is 1, and True is not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _compiled(pattern: Any) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except (re.error, TypeError):
        return None
