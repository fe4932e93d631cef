r"""Guaranteed structure: which tokens keep an answer inside a grammar.

A `Constraint` is one grammar; a `Cursor` walks it with the tokens of one model. The library
`llguidance` does the parsing. The grammar speaks about bytes, so cursors of models with different
tokenizers agree: what one may write, the others may read, however they cut it into tokens.

JSON is written on one line, as Python's `json.dumps` does (`{"a": 1, "b": [1, 2]}`), properties in
the order of the schema. So a model cannot get lost in white space, and braces, keys and separators
are forced text that no model has to be asked for. `\uXXXX` escapes are not written: a key spelled
with them would escape the schema's rules for it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import Choice, JsonSchema, Regex, ResponseFormat
from safe_integrations.engine.tokens import END, TokenTable, common_prefix
from safe_integrations.errors import GenerationError, InvalidArgumentError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

JSON_STYLE: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}
"""How JSON is written: see the module's description."""

_NEVER_FORCE: Final = '\n%llguidance {"no_forcing": true}\n'
"""Otherwise the library allows only its own tokenisation of a forced text."""

_UNSUPPORTED_OPTION: Final = re.compile(
    r"^[ \t]*[?!]?[\w-]+[ \t]*\[[^\]\n]*\b(stop|max_tokens|temperature)\b[^\]\n]*\][ \t]*:", re.M
)


class Constraint:
    """One grammar that an answer must follow. Compiled once; shared by all models.

    Args:
        response_format: What the answer must look like.

    Raises:
        InvalidArgumentError: The format cannot be guaranteed; the message names the part of it.
        ImportError: `llguidance` is not installed.
    """

    def __init__(self, response_format: ResponseFormat) -> None:
        self._grammar = _checked(_lark(response_format), "response_format", response_format)

    @classmethod
    def of_lark(cls, lark: str, argument: str) -> Constraint:
        """A constraint from a grammar of ours; `argument` is what errors blame."""
        constraint = cls.__new__(cls)
        constraint._grammar = _checked(lark, argument, lark)
        return constraint

    def cursor(self, tokens: TokenTable) -> Cursor:
        """A cursor at the beginning of the grammar, for a model with these tokens.

        Raises:
            InvalidArgumentError: The grammar is too large for the library.
        """
        return Cursor(self._grammar, tokens)


class Cursor:
    """A grammar, walked with the tokens of one model.

    Every question names all the ids generated so far. The cursor goes back and forth by itself:
    only what differs from the last question costs anything. After ids that leave the grammar
    nothing is allowed. Not for use by several threads at once.
    """

    def __init__(self, grammar: str, tokens: TokenTable) -> None:
        self._grammar = grammar
        self._tokens = tokens
        self._canonical = dict(tokens.aliases)
        self._rejected: list[int] | None = None  # the last ids that left the grammar
        self._restart()
        if self._matcher.is_error():
            reason = _plain(self._matcher.get_error())
            raise InvalidArgumentError("response_format", grammar, reason)

    def _restart(self) -> None:
        matcher = _library().LLMatcher
        self._matcher = matcher(_tokenizer_of(self._tokens), self._grammar, log_level=0)
        self._ids: list[int] = []  # what the matcher has consumed
        self._mask: NDArray[np.bool_] | None = None

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        """Which ids may follow.

        END may follow where the grammar may end. Silent ids and aliases never do. Where the
        grammar needs a text that these tokens cannot write, nothing may follow.

        Args:
            ids: All ids generated so far.

        Returns:
            One flag per id of the table, read-only.

        Raises:
            GenerationError: The grammar became too complex for the library.
        """
        if not self._go_to(ids):
            return np.zeros(self._tokens.size, np.bool_)
        if self._mask is None:
            packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.get_error().startswith("NoExtensionBias"):  # no token fits
                self._restart()
                return np.zeros(self._tokens.size, np.bool_)
            self._check()
            flags = np.unpackbits(packed, count=self._tokens.size, bitorder="little")
            self._mask = flags.view(np.bool_)
            self._mask.flags.writeable = False
        return self._mask

    def forced(self, ids: Sequence[int]) -> bytes:
        """The text that must come next: whole characters, empty where there is a choice.

        Where the ids end inside a character, the text begins with the rest of it.

        Args:
            ids: All ids generated so far.
        """
        if not self._go_to(ids):
            return b""
        text: bytes = self._matcher.compute_ff_bytes()
        self._check()
        return text[: len(text) - _unfinished(text)]

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the grammar may end here.

        Args:
            ids: All ids generated so far.
        """
        return self._go_to(ids) and bool(self._matcher.is_accepting())

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether nothing but END may follow.

        Args:
            ids: All ids generated so far.
        """
        if not self.complete(ids):
            return False
        # The library notices an end only when it moves: before the first token the mask tells
        return bool(self._matcher.is_stopped()) or (not ids and int(self.allowed(ids).sum()) == 1)

    def _go_to(self, ids: Sequence[int]) -> bool:
        """Moves the matcher; False where the ids leave the grammar."""
        wanted = list(ids)
        if wanted == self._ids:
            return True
        if wanted == self._rejected:
            return False
        shared = common_prefix(self._ids, wanted)
        if shared < len(self._ids):
            self._matcher.rollback(len(self._ids) - shared)
            del self._ids[shared:]
        self._mask = None
        rest = [self._canonical.get(i, i) for i in wanted[shared:]]
        if self._tokens.end_id in rest:  # nothing follows END
            del rest[rest.index(self._tokens.end_id) :]
        taken = shared + self._matcher.try_consume_tokens(rest)
        self._check()
        self._ids = wanted[:taken]
        self._rejected = None if taken == len(wanted) else wanted
        return self._rejected is None

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _plain(self._matcher.get_error())
            raise GenerationError(f"the grammar could not be followed any further: {reason}")


def json_rule(schema: dict[str, Any], argument: str) -> str:
    """A JSON schema as the right side of a Lark rule.

    Args:
        schema: The schema.
        argument: Whom an error blames.

    Raises:
        InvalidArgumentError: The schema cannot be guaranteed; the message names the part.
    """
    schema = _prepared(schema, argument)
    _refuse(_find_fault(schema, schema, "#"), argument)
    return _json(schema)


def text_rule(text: str) -> str:
    """A literal text as the right side of a Lark rule."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def regex_rule(pattern: str) -> str:
    """A regular expression as the right side of a Lark rule."""
    made: dict[str, Any] = json.loads(_library().LLMatcher.grammar_from_regex(pattern))
    lark: str = made["grammars"][0]["lark_grammar"]
    return lark.removeprefix("start: ")


def choice_rule(options: Sequence[str]) -> str:
    """One of several literal texts as the right side of a Lark rule."""
    return " | ".join(map(text_rule, options))


def _lark(response_format: ResponseFormat) -> str:
    match response_format:
        case JsonSchema():
            return "start: " + json_rule(response_format.schema_, "response_format")
        case Regex():
            return "start: " + regex_rule(response_format.pattern)
        case Choice():
            return "start: " + choice_rule(response_format.options)
        case _:
            return response_format.lark


def _checked(lark: str, argument: str, given: object) -> str:
    """The grammar in the library's own form, once the library has accepted it."""
    option = _UNSUPPORTED_OPTION.search(lark)
    if option is not None:
        raise InvalidArgumentError(
            argument, given, f"the rule option {option[1]!r} is not supported: leave it out"
        )
    grammar = json.dumps({"grammars": [{"lark_grammar": lark + _NEVER_FORCE}]})
    refused, messages = _library().LLMatcher.validate_grammar_with_warnings(grammar)
    if refused:
        raise InvalidArgumentError(argument, given, _plain(messages[0]))
    if any("no tokenizer" in message for message in messages):
        raise InvalidArgumentError(
            argument, given, "models share text, not special tokens: write them as text"
        )
    return grammar


# JSON schemas

_UNWRITABLE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u|\x7f")
"""A character in JSON text that only a `\\uXXXX` escape can write."""

_SCHEMA_KEYS: Final = ("items", "additionalProperties", "additionalItems")
_SCHEMA_LISTS: Final = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
_SCHEMA_MAPS: Final = ("$defs", "definitions", "properties", "patternProperties")


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
    return {**schema, "x-guidance": JSON_STYLE}


def _parts(schema: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all schemas inside it, each with its JSON pointer."""
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for child_pointer, child in _children(schema, pointer):
        yield from _parts(child, child_pointer)


def _children(schema: dict[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    for key in _SCHEMA_KEYS:
        if isinstance(schema.get(key), dict):
            yield f"{pointer}/{key}", schema[key]
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            for i, child in enumerate(schema[key]):
                yield f"{pointer}/{key}/{i}", child
    for key in _SCHEMA_MAPS:
        if isinstance(schema.get(key), dict):
            for name, child in schema[key].items():
                yield f"{pointer}/{key}/{name}", child


Fault = tuple[str, object, str]
"""JSON pointer, the part of the schema, what is wrong with it."""


def _find_fault(schema: Any, root: dict[str, Any], pointer: str) -> Fault | None:
    """The smallest part of a schema that cannot be guaranteed."""
    message = _complaint(schema, root)
    if message is not None:
        for child_pointer, child in _children(schema, pointer):
            fault = _find_fault(child, root, child_pointer)
            if fault is not None and fault[2] == message:
                return fault
        return pointer, {k: v for k, v in schema.items() if k != "x-guidance"}, message
    return _own_fault(schema) if schema is root else None


def _complaint(schema: Any, root: dict[str, Any]) -> str | None:
    """What the library says against a part of a schema."""
    if not isinstance(schema, dict):
        return None
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    grammar = json.dumps(
        {"grammars": [{"lark_grammar": "start: " + _json({**definitions, **schema})}]}
    )
    refused, messages = _library().LLMatcher.validate_grammar_with_warnings(grammar)
    return _plain(messages[0]) if refused else None


def _own_fault(root: dict[str, Any]) -> Fault | None:
    """A part that the library accepts without keeping it."""
    for pointer, part in _parts(root, "#"):
        wanted = part.get("minProperties", 0)
        if isinstance(wanted, int) and wanted > len(set(part.get("required", ()))) + 1:
            message = "more than one key beyond the required ones cannot be guaranteed to differ"
            return pointer, {"minProperties": wanted}, message
        for key in ("const", "enum", "properties", "required"):
            if _UNWRITABLE.search(_json(_literals(part, key))):
                return pointer, {key: part[key]}, "control characters are not written"
    return None


def _literals(part: dict[str, Any], key: str) -> Any:
    value = part.get(key)
    return list(value) if key == "properties" and isinstance(value, dict) else value


def _refuse(fault: Fault | None, argument: str) -> None:
    if fault is not None:
        pointer, part, message = fault
        raise InvalidArgumentError(argument, part, f"cannot be guaranteed at {pointer}: {message}")


def _json(schema: Any) -> str:
    return "%json " + json.dumps(schema, ensure_ascii=False)


# The library

_tokenizers: WeakKeyDictionary[TokenTable, LLTokenizer] = WeakKeyDictionary()
_tokenizers_lock = threading.Lock()


class _Vocabulary:
    """A token table in the form that the library reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: TokenTable) -> None:
        aliases = {alias for alias, _ in tokens.aliases}
        self.eos_token_id = tokens.end_id
        self.special_token_ids = [tokens.end_id]
        # The library reads 0xff as "special token"; no text holds that byte. Empty is never allowed
        self.tokens = [
            b"" if symbol is None or i in aliases or symbol[0] == 0xFF else symbol
            for i, symbol in enumerate(tokens.symbols())
        ]
        self.tokens[tokens.end_id] = END[1:]

    def __call__(self, text: str) -> list[int]:
        raise AssertionError("a grammar without forcing needs no tokenizer")


def _tokenizer_of(tokens: TokenTable) -> LLTokenizer:
    with _tokenizers_lock:
        found = _tokenizers.get(tokens)
        if found is None:
            found = _library().LLTokenizer(_Vocabulary(tokens))
            _tokenizers[tokens] = found
        return found


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ImportError(
            'guaranteed structure needs llguidance: pip install "safe-integrations[structured]"'
        ) from None
    return llguidance


def _plain(message: str) -> str:
    """An error of the library without its dumps of grammar and state."""
    text = re.split(r"<(?:state|grammar)>|^ *\d+ \| ", message, maxsplit=1, flags=re.M)[0]
    text = re.sub(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?", "", text)
    return " ".join(text.split())


def _unfinished(text: bytes) -> int:
    """How many bytes at the end belong to a character that is not whole."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
        if byte < 0x80:
            return 0
    return 0
