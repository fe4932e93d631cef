"""Chat templates as Jinja has them, in a sandbox: they come from strangers.

What a template finds here is what transformers gives it, so that a model sees the prompts it was
trained on: filters and functions, how blanks around blocks are cut, which variables there are. What
is handed to it is plain data; it can neither change it nor reach anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, Final, NoReturn

import numpy as np
from jinja2 import Template, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from safe_integrations.models.shapes import Turn

_THOUGHTS: Final = ("reasoning_content", "thinking", "reasoning")
"""Names of the thoughts in a turn; templates read the first, gpt-oss's the second."""


def render(
    source: str, turns: Sequence[Turn], *, generation: bool, variables: Mapping[str, Any]
) -> str:
    """Renders a conversation; raises whatever a template may.

    Args:
        source: The template.
        turns: The conversation.
        generation: Whether the beginning of an answer is asked for.
        variables: What the template is given besides: `tools`, `documents`, names of special
            tokens, and variables of its own.
    """
    if not turns:
        raise ValueError("there is no message")
    template = _compiled(source)
    given = {"tools": None, "documents": None, **_plain(variables)}
    if not all(isinstance(document, dict) for document in given["documents"] or ()):
        raise TypeError("documents are a list of dicts, each with a title and a text")
    messages = [_with_thoughts(_plain(turn)) for turn in turns]
    return template.render(messages=messages, add_generation_prompt=generation, **given)


def names_in(source: str) -> set[str]:
    """The variables that a template asks for; none where it cannot be read."""
    try:
        return meta.find_undeclared_variables(_environment().parse(source))
    except TemplateError:
        return set()


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what a model learns to write: its body is text like any other."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Dict:
    """What templates need of `dict`, without the attributes of a class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace without a way to Python's own attributes."""

    def __init__(*args: Any, **values: Any) -> None:  # so that a value may be called `self`
        self, *given = args
        known = dict(*given, **values)
        for name in known:
            _check(name)
        Namespace.__init__(self, known)

    def __setitem__(self, name: str, value: Any) -> None:
        _check(name)
        super().__setitem__(name, value)


def _check(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that starts with an underscore: {name!r}")


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As JSON; Jinja's own filter would escape what HTML cannot hold."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _with_thoughts(turn: Turn) -> Turn:
    """A turn without what is None, with its thoughts under the names that templates look for."""
    told = {key: value for key, value in turn.items() if value is not None}
    thoughts = next((told[name] for name in _THOUGHTS if name in told), None)
    if thoughts is None:
        return told
    return {"thinking": thoughts, **told, "reasoning_content": thoughts}


def _plain(value: Any) -> Any:
    """A value as plain data: methods of other objects could be called from inside the sandbox."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return _plain(dump())
    return f"<{type(value).__name__}>"
