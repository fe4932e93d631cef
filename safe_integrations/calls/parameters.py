r"""Grammar of parameters that are written one by one, each value by its own schema.

Strings are free up to the tag behind them, and values of Gemma 4's are free inside. What no rule
enforces is checked on the whole call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from safe_integrations.calls.form import KEY, QUOTE, SLOTS, Form
from safe_integrations.calls.values import resolve, types_of
from safe_integrations.errors import InvalidArgumentError, MissingDependencyError
from safe_integrations.structure.checking import complaint
from safe_integrations.structure.constraint import ANY_TEXT
from safe_integrations.structure.rewriting import SAID
from safe_integrations.structure.schemas import Checked, announce, json_rule, split

_PIECES: Final = re.compile(f"({'|'.join(map(re.escape, SLOTS))}|\n)")
_DEFINITIONS: Final = frozenset(("$defs", "definitions"))
_OBJECT: Final = {"type", "properties", "required", "$schema", "$id", *SAID, *_DEFINITIONS}
_SCALARS: Final = frozenset(("number", "integer", "boolean", "null"))
_BOOLEAN: Final = '("true" | "false" | "True" | "False")'
_INSIDE: Final = re.compile(r'"\$ref": "#(?!/(?:\$defs|definitions)/)')
"""A reference to what is no definition, and so is not part of a parameter's own schema."""


def parameters(
    form: Form, name: str, argument: str, schema: dict[str, Any], strict: bool | None
) -> str:
    """The rule of a call's arguments, and those that it needs besides `shared`.

    Args:
        form: How calls are written.
        name: How the rule is called; the names of the others begin with it.
        argument: The argument that errors blame.
        schema: The schema of the arguments.
        strict: See `json_rule`.

    Raises:
        InvalidArgumentError: The schema cannot be guaranteed, or the form cannot write its keys.
        MissingDependencyError: `llguidance` is not installed, or `jsonschema` where it is needed.
    """
    rules, checked = _rules(form, name, argument, schema)
    announce(checked, argument, schema, strict)
    return "\n".join(rules)


def breach(form: Form, schema: dict[str, Any], arguments: dict[str, Any]) -> str | None:
    """Which part of a schema that no rule enforces a whole call breaks, as a sentence."""
    try:
        return complaint(schema, arguments) if _rules(form, "x", "x", schema)[1] else None
    except (InvalidArgumentError, MissingDependencyError):  # then it was nobody's rule
        return None


def shared(form: Form) -> str:
    """Rules that the parameters of all tools have in common."""
    if form.is_json:
        return ""
    before, between, after = form.around_value
    ways, _ = _values(form, {}, {}, "")
    rules = [f"extra: {literal(before)} EXTRA ({' | '.join(ways)})", f"EXTRA: /{KEY}/"]
    if form.kind == "raw":
        line, tag = "\\n" if between.endswith("\n") else "", after.strip()
        rules.append(f"raw[lazy]: RAW {text_rule(tag)}")
        rules.append(f"RAW: /(?s:.*{line})/ & ~/(?s:.*{pattern(tag)}.*)/")
    if form.kind == "python":
        rules.append(r"QUOTED: /'[^'\\\x00-\x1f]*'/")
    if form.kind == "gemma":
        rules += [
            f"gstring: {text_rule(QUOTE)} gtext",
            f"gtext[lazy]: GTEXT {text_rule(QUOTE)}",
            f"GTEXT: {ANY_TEXT}",
            "gany: gstring | gscalar | glist | gobject",
            'gscalar: %json {"type": ["number", "boolean", "null"]}',
            'glist: "[" (gany ("," gany)*)? "]"',
            'gobject: "{" (gpair ("," gpair)*)? "}"',
            'gpair: EXTRA ":" gany',
        ]
    return "\n".join(rules) + "\n"


def _rules(
    form: Form, name: str, argument: str, schema: dict[str, Any]
) -> tuple[list[str], Checked]:
    """The rules of arguments, and what of their schema is left to check."""
    required = [key for key in schema.get("required") or () if isinstance(key, str)]
    given = schema.get("properties")
    properties = (given if isinstance(given, dict) else {}) | {
        key: {} for key in required if not isinstance(given, dict) or key not in given
    }
    keys = sorted(properties) if form.kind == "gemma" else list(properties)
    others = schema.get("additionalProperties", True)
    checked = [("#", key) for key in schema if key not in {*_OBJECT, "additionalProperties"}]
    checked += [("#", "additionalProperties")] if isinstance(others, dict) else []
    comma, rules = literal(form.comma), [f"{name}: {name}_first0"]
    for n, key in enumerate(keys):
        if not re.fullmatch(KEY, key):
            remedy = (
                f"calls of the form {form.name} cannot have it as a key: set tool_form='hermes'"
            )
            raise InvalidArgumentError(argument, key, remedy)
        ways, left = _values(form, properties[key], schema, argument)
        checked += [(f"#/properties/{key}{at.removeprefix('#')}", keyword) for at, keyword in left]
        rules.append(f"{name}_p{n}: {literal(form.around_value[0] + key)} ({' | '.join(ways)})")
        for place, before in (("first", ""), ("rest", comma)):  # before and behind another one
            skip = "" if key in required else f" | {name}_{place}{n + 1}"
            rules.append(f"{name}_{place}{n}: {before} {name}_p{n} {name}_rest{n + 1}{skip}")
    more = '""' if others is False else f"({comma} extra)*"
    first = more if others is False else f"(extra {more})?"
    rules += [f"{name}_first{len(keys)}: {first}", f"{name}_rest{len(keys)}: {more}"]
    return rules, tuple(checked)


def _values(
    form: Form, schema: Any, root: Mapping[str, Any], argument: str
) -> tuple[list[str], list[tuple[str, str]]]:
    """The ways to write a value, from behind its key on, and what is left to check of it."""
    own, checked = _own(schema, root)
    types = types_of(own, own)
    strings, others = "string" in types, types - {"string"}
    choices = own.get("enum", [own["const"]] if "const" in own else None)
    texts = [value for value in choices or () if isinstance(value, str)]
    _, between, after = form.around_value
    said, unsaid = (
        literal(between.replace("{string}", word), form.loose) for word in ("true", "false")
    )
    ways = []
    if form.kind == "python":
        words = ["True", "False"] * ("boolean" in types) + ["None"] * ("null" in types)
        ways += [f"{said} {text_rule(word)}" for word in words if choices is None]
        if own.keys() - SAID - _DEFINITIONS == {"type"} and strings:
            ways.append(f"{said} QUOTED")
        ways.append(f"{said} {json_rule(own, argument, False)}")
        return ways, [*checked, *split(own, argument).checked]
    quote = QUOTE if form.kind == "gemma" else ""
    if strings and choices is not None:
        ways += [f"{said} {literal(quote + text + quote + after, form.loose)}" for text in texts]
    elif strings and quote:
        ways.append(f"{said} gstring")
    elif strings:
        _, _, tail = after.partition(after.strip())
        ways.append(f"{said} raw {literal(tail, form.loose)}")
    free = {"type", *SAID, *_DEFINITIONS} | ({"enum", "const"} if choices is not None else set())
    left = [("#", key) for key in own if key not in free and not _is_free(own, key)]
    if form.kind == "gemma":
        ways += [f"{said} glist"] * ("array" in types) + [f"{said} gobject"] * ("object" in types)
        others &= _SCALARS
    elif strings and "{string}" not in between and choices is None:
        others = frozenset()  # any text will do, and is what it can be
    if others == {"boolean"} and choices is None:
        ways.append(f"{unsaid} {_BOOLEAN} {literal(after, form.loose)}")
    elif others and (choices is None or len(texts) < len(choices)):
        whole = types == others
        rest = (
            own
            if whole
            else {"type": sorted(others)}
            | ({"enum": [c for c in choices if c not in texts]} if choices else {})
        )
        ways.append(f"{unsaid} {json_rule(rest, argument, False)} {literal(after, form.loose)}")
        left = list(split(own, argument).checked) if whole else left
    return ways, [*checked, *left]


def _own(schema: Any, root: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A parameter's schema outside of that of all parameters, and what that loses."""
    for _ in range(16):
        if not isinstance(schema, dict) or schema.keys() - SAID != {"$ref"}:
            break
        schema = resolve(schema["$ref"], root)
    if not isinstance(schema, dict) or _INSIDE.search(json.dumps(schema, default=str)):
        return {}, [("#", "$ref")]
    return schema | {key: root[key] for key in _DEFINITIONS if key in root}, []


def _is_free(schema: dict[str, Any], key: str) -> bool:
    """Whether a keyword only lists types."""
    parts = schema[key] if key in ("anyOf", "oneOf") else None
    return isinstance(parts, list) and all(
        isinstance(part, dict) and part.keys() - SAID == {"type"} for part in parts
    )


def literal(text: str, loose: bool = False) -> str:
    """A text of a form as part of a Lark rule; empty where it is empty."""
    parts = []
    for piece in filter(None, _PIECES.split(text)):
        if piece in SLOTS:
            parts.append(f"/{SLOTS[piece]}/")
        else:
            parts.append(text_rule(piece) + ("?" if loose and piece == "\n" else ""))
    return " ".join(parts)


def text_rule(text: str) -> str:
    """A text as the right side of a Lark rule."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def pattern(text: str) -> str:
    """A text inside a regular expression of Lark's."""
    return re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", text)
