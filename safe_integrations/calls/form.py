"""What makes a form: the texts around a call's name and arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import Any, Final, Literal

Kind = Literal["object", "json", "raw", "gemma", "python"]

SLOTS: Final = {
    "{index}": "[0-9]{1,3}",
    "{id}": "[A-Za-z0-9_-]{1,64}",
    "{string}": "[a-z]+",
}
"""What the texts of a form may leave open, and the pattern of it."""

KEY: Final = r"[^\x00-\x20\x7f-\xa0<>\x22'=:(){}\[\],|&]{1,64}"
"""What a parameter may be called where parameters are written one by one."""

_TAG: Final = re.compile(r"<[^<>]*>|\[\w+\]")

QUOTE: Final = '<|"|>'
"""What Gemma 4 writes around a string."""


@dataclass(frozen=True)
class Form:
    """One way to write calls of tools. Grammar, reader and writer are made of its texts.

    A call is `opening` and `call`. Where there is a `section`, it is `opening` and `section`, and
    all calls of the answer stand in that.

    Attributes:
        name: How it is called here.
        opening: Where text ends: behind it nothing but calls may follow.
        call: A call, with $NAME and $ARGS.
        kind: How arguments are written. `object` and `json`: as JSON, the call itself being an
            object or not. The others write parameters one by one: `raw` has strings as they are
            and the rest as JSON, `gemma` and `python` have values of their own.
        parameter: A parameter, with $KEY and $VALUE, where they are written one by one. `{string}`
            is whether the value is a string.
        comma: What stands between two parameters.
        joint: What stands between two calls.
        section: What stands around $CALLS.
        alone: Whether an answer is either text or calls: one, or a section of them.
        says: What stands before an answer that is text, where a model begins with a header.
        loose: Whether models leave out line feeds of the form as they like.
    """

    name: str
    opening: str
    call: str
    kind: Kind = "object"
    parameter: str = "$KEY$VALUE"
    comma: str = ""
    joint: str = ""
    section: str = ""
    alone: bool = False
    says: str = ""
    loose: bool = False

    @cached_property
    def around(self) -> tuple[str, str, str]:
        """What stands before the name, between name and arguments, and behind them."""
        return _split(self.call, "$NAME", "$ARGS")

    @cached_property
    def around_value(self) -> tuple[str, str, str]:
        """What stands before a key, between key and value, and behind the value."""
        return _split(self.parameter, "$KEY", "$VALUE")

    @cached_property
    def around_calls(self) -> tuple[str, str]:
        """What stands before and behind all calls, where there is a section."""
        before, _, after = self.section.partition("$CALLS")
        return before, after

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Everything that is written besides names and arguments."""
        first = self.around_calls[0] + self.around[0]
        quotes = (QUOTE,) if self.kind == "gemma" else ()
        rest = (*self.around, *self.around_value, *self.around_calls, *quotes)
        return (self.opening + first, *rest, self.comma, self.joint, self.says)

    @cached_property
    def end(self) -> str:
        """The last tag of a call; empty where it has none."""
        both = self.around_calls[1], self.around[2]
        return next((found[-1] for text in both[::-1] if (found := _TAG.findall(text))), "")

    @cached_property
    def ends(self) -> tuple[bytes, ...]:
        """What leads out of free text, of slots, and of a section."""
        _, between, after = self.around_value
        line = "\n" if between.endswith("\n") else ""
        found = [{"gemma": QUOTE, "python": "'"}.get(self.kind, line + after.strip())]
        for text in (*self.around, self.around_calls[1]):
            found += [text.partition(slot)[2] for slot in SLOTS if slot in text]
        last = self.around_calls[1]
        shared = len(commonprefix([self.joint + self.around[0], last]))  # written in any case
        return tuple(end.encode() for end in (*found, last[shared:]) if end)

    @property
    def is_json(self) -> bool:
        """Whether arguments are JSON, which a grammar can hold to any schema."""
        return self.kind in ("object", "json")

    def write(self, calls: Iterable[tuple[str, Mapping[str, Any] | str]]) -> str:
        """Calls as a model writes them: names, and arguments as data or as JSON text.

        A string that holds the form's own tags is written all the same, and cannot be read back.
        """
        written = [self._call(i, *call) for i, call in enumerate(calls)]
        if not self.section:
            return self.joint.join(self.opening + call for call in written)
        return self.opening + self.section.replace("$CALLS", self.joint.join(written))

    def _call(self, index: int, name: str, arguments: Mapping[str, Any] | str) -> str:
        before, between, after = (
            part.replace("{index}", str(index)).replace("{id}", f"call{index:05}")
            for part in self.around
        )
        return before + name + between + self._arguments(arguments) + after

    def _arguments(self, given: Mapping[str, Any] | str) -> str:
        if self.is_json:
            return given if isinstance(given, str) else dumps(given)
        data = _object(given) if isinstance(given, str) else given
        return self.comma.join(self._parameters(data))

    def _parameters(self, data: Mapping[str, Any]) -> Iterator[str]:
        before, between, after = self.around_value
        for key, value in sorted(data.items()) if self.kind == "gemma" else data.items():
            said = between.replace("{string}", str(isinstance(value, str)).lower())
            yield before + key + said + self._value(value) + after

    def _value(self, value: Any) -> str:
        match self.kind, value:
            case "raw", str():
                return value
            case "python", bool() | None:
                return repr(value)
            case "gemma", str():
                return QUOTE + value + QUOTE
            case "gemma", dict() as items:
                pairs = (f"{key}:{self._value(item)}" for key, item in sorted(items.items()))
                return "{" + ",".join(pairs) + "}"
            case "gemma", [*values]:
                return "[" + ",".join(map(self._value, values)) + "]"
        return dumps(value)


def dumps(value: Any) -> str:
    """JSON as it is written everywhere here."""
    return json.dumps(value, ensure_ascii=False)


def _object(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, dict) else {"arguments": text}


def _split(text: str, first: str, second: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(first)
    between, _, after = rest.partition(second)
    return before, between, after
