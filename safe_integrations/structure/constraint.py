r"""Which tokens keep an answer inside a grammar.

A `Constraint` is one grammar; a `Cursor` walks it with the tokens of one model. The library
`llguidance` does the parsing. The grammar speaks about bytes, so cursors of models with different
tokenizers agree: what one may write, the others may read, however they cut it into tokens.
"""

from __future__ import annotations

import json
import re
import threading
from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from safe_integrations.engine.tokens import END, TokenTable, common_prefix
from safe_integrations.errors import (
    GenerationError,
    InvalidArgumentError,
    MissingDependencyError,
)
from safe_integrations.structure.closing import BYTES, Closing, Place, cut_values, json_lines
from safe_integrations.structure.hints import wanted, words

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

ANY_TEXT: Final = "/(?s:.)*/"
"""Any text, as the right side of a Lark rule."""

_NEVER_FORCE: Final = '\n%llguidance {"no_forcing": true}\n'
"""Otherwise the library allows only its own tokenisation of a forced text."""

_UNSUPPORTED_OPTION: Final = re.compile(
    r"^[ \t]*[?!]?[\w-]+[ \t]*\[[^\]\n]*\b(stop|max_tokens|temperature)\b[^\]\n]*\][ \t]*:", re.M
)


class Constraint:
    """A grammar that an answer must follow, accepted by the library. All models share it.

    Args:
        lark: The grammar.
        argument: The argument that errors blame.
        given: What the caller passed there.
        closes: Whether the answer is the grammar's from its beginning to its end, so that it must
            be brought to an end within the budget.
        ends: Texts that lead towards the end wherever they may follow.
        places: Finds JSON in the answer.

    Raises:
        InvalidArgumentError: The grammar cannot be guaranteed.
        MissingDependencyError: `llguidance` is not installed.
    """

    def __init__(
        self,
        lark: str,
        argument: str,
        given: object,
        closes: bool = True,
        ends: Sequence[bytes] = (),
        places: Callable[[bytes], Sequence[Place]] = json_lines,
    ) -> None:
        self._lark = lark
        self._ends = ends
        self._places = places
        self._closes = closes
        self._argument = argument
        self._given = given
        option = _UNSUPPORTED_OPTION.search(lark)
        if option is not None:
            self._refuse(f"the rule option {option[1]!r} is not supported: leave it out")
        reason = refusal(lark)
        if reason is not None:
            self._refuse(reason)

    def cursor(self, tokens: TokenTable) -> Cursor:
        """A cursor at the beginning of the grammar, for a model with these tokens.

        Raises:
            InvalidArgumentError: The grammar is too large for the library.
        """
        free = _vocabulary_of(tokens)[1]
        return Cursor(self._matcher(tokens), tokens, free, self._closing, self._places)

    def _closing(self) -> Closing | None:
        if not self._closes:
            return None
        names, patterns = wanted(self._lark)
        find = partial(words, patterns, _in_bytes)
        return Closing(self._matcher(BYTES), names, find, self._ends)

    def _matcher(self, tokens: TokenTable) -> LLMatcher:
        matcher = _vocabulary_of(tokens)[0](self._lark)
        if matcher.is_error():
            self._refuse(_plain(matcher.get_error()))
        return matcher

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidArgumentError(self._argument, self._given, reason)


class Cursor:
    """A grammar, walked with the tokens of one model.

    Every question names all the ids generated so far. The cursor goes back and forth by itself:
    only what differs from the last question costs anything. After ids that leave the grammar
    nothing is allowed. Not for use by several threads at once.

    Args:
        matcher: The library's parser at the beginning of the grammar.
        tokens: The model's tokens.
        free: The library's mask where any text may follow.
        closing: Makes what finds ways out, once they are asked for.
        places: Finds JSON in an answer.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        tokens: TokenTable,
        free: bytes,
        closing: Callable[[], Closing | None],
        places: Callable[[bytes], Sequence[Place]],
    ) -> None:
        self._places = places
        self._start = matcher
        self._closing = cache(closing)
        self._tokens = tokens
        self._free = free
        self._canonical = dict(tokens.aliases)
        self._blank = tokens.id_of(b" ")
        self._rejected: list[int] | None = None  # the last ids that left the grammar
        self._restart()

    def _restart(self) -> None:
        self._matcher = self._start.deep_copy()
        self._ids: list[int] = []  # what the matcher has consumed
        self._mask: bytes | None = None  # one bit per id

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which ids may follow.

        END may follow where the grammar may end. Silent ids and aliases never do. Where the
        grammar needs a text that these tokens cannot write, nothing may follow.

        Returns:
            One flag per id of the table, read-only. None where any text may follow, and END: there
            every id may. Then even bytes that are no UTF-8 are taken, as without a grammar.

        Raises:
            GenerationError: The grammar became too complex for the library.
        """
        packed = self._packed(ids)
        if packed == self._free and self._blank is not None:
            return None
        flags = np.unpackbits(
            np.frombuffer(packed, np.uint8), count=self._tokens.size, bitorder="little"
        ).view(np.bool_)
        flags.flags.writeable = False
        return flags

    def forced(self, ids: Sequence[int]) -> bytes:
        """The text that must come next: whole characters, empty where there is a choice.

        Where the ids end inside a character, the text begins with the rest of it.
        """
        if not self._go_to(ids):
            return b""
        text: bytes = self._matcher.compute_ff_bytes()
        self._check()
        return _whole_characters(text)

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the grammar may end here."""
        return self._go_to(ids) and self._matcher.is_accepting()

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether nothing but END may follow."""
        if not self.complete(ids):
            return False
        # The library notices an end only when it moves: before the first token the mask tells
        return self._matcher.is_stopped() or (
            not ids and sum(map(int.bit_count, self._packed(ids))) == 1
        )

    def closing(self, text: bytes) -> bytes | None:
        """A short text that ends the grammar behind a text; None where none is known."""
        closing = self._closing()
        return None if closing is None else closing.way(text)

    def ends(self, text: bytes, way: bytes) -> bool:
        """Whether a text ends the grammar behind another text."""
        closing = self._closing()
        return closing is not None and closing.ends(text, way)

    def cut(self, text: bytes, spans: Sequence[tuple[int, int]]) -> list[str]:
        """JSON pointers of the values that the budget cut or made up, out of where it wrote."""
        return cut_values(text, spans, self._places)

    def _packed(self, ids: Sequence[int]) -> bytes:
        """Which ids may follow, one bit per id."""
        if not self._go_to(ids):
            return bytes(len(self._free))
        if self._mask is None:
            mask = self._matcher.compute_bitmask()
            if self._matcher.get_error().startswith("NoExtensionBias"):  # no token fits
                self._restart()
                return bytes(len(self._free))
            self._check()
            self._mask = mask
        return self._mask

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
        rest = [self._canonical.get(i, i) for i in wanted[shared:]]
        if self._tokens.end_id in rest:  # nothing follows END
            del rest[rest.index(self._tokens.end_id) :]
        taken = self._matcher.try_consume_tokens(rest)
        while taken < len(rest) and self._blank is not None and self._is_free():
            rest[taken] = self._blank  # in the place of bytes that are no UTF-8
            taken += self._matcher.try_consume_tokens(rest[taken:])
        self._check()
        self._mask = None
        self._ids = wanted[: shared + taken]
        self._rejected = None if len(self._ids) == len(wanted) else wanted
        return self._rejected is None

    def _is_free(self) -> bool:
        return not self._matcher.is_error() and self._matcher.compute_bitmask() == self._free

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _plain(self._matcher.get_error())
            raise GenerationError(f"the grammar could not be followed any further: {reason}")


def refusal(lark: str) -> str | None:
    """Why a grammar cannot be followed; None where it can.

    Raises:
        MissingDependencyError: `llguidance` is not installed.
    """
    return _refusal(library().LLMatcher, lark)


@lru_cache(maxsize=256)
def _refusal(matcher: type[LLMatcher], lark: str) -> str | None:
    grammar = _compiled(lark)
    refused, messages = matcher.validate_grammar_with_warnings(grammar, limits=_limits())
    if refused:
        return _plain(messages[0])
    if any("no tokenizer" in message for message in messages):
        return "models share text, not special tokens: write them as text"
    return None


def library() -> Any:
    """The library, once it is needed.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise MissingDependencyError("guaranteed structure", "llguidance", "structured") from None
    return llguidance


def _compiled(lark: str) -> str:
    """A grammar in the library's own form."""
    return json.dumps({"grammars": [{"lark_grammar": lark + _NEVER_FORCE}]})


def _in_bytes(lark: str) -> LLMatcher | None:
    """The parser at the beginning of a grammar, over `BYTES`; None where it is refused."""
    return None if refusal(lark) else _vocabulary_of(BYTES)[0](lark)


def _matcher(tokenizer: LLTokenizer, lark: str) -> LLMatcher:
    return library().LLMatcher(tokenizer, _compiled(lark), log_level=0, limits=_limits())


@cache
def _limits() -> LLParserLimits:
    """Ten times what the library takes: else a long text by a pattern breaks off."""
    limits: LLParserLimits = library().LLParserLimits(
        initial_lexer_fuel=10_000_000, step_lexer_fuel=2_000_000
    )
    return limits


_Start = Callable[[str], "LLMatcher"]
_vocabularies: WeakKeyDictionary[TokenTable, tuple[_Start, bytes]] = WeakKeyDictionary()
_vocabularies_lock = threading.Lock()


def _vocabulary_of(tokens: TokenTable) -> tuple[_Start, bytes]:
    """What starts a grammar for these tokens, and the library's mask where any text may follow.

    A grammar is compiled once; by several threads at once, none of which waits for another.
    """
    with _vocabularies_lock:
        found = _vocabularies.get(tokens)
        if found is None:
            tokenizer = library().LLTokenizer(_Tokens(tokens))
            free = _matcher(tokenizer, f"start: {ANY_TEXT}").compute_bitmask()
            start = lru_cache(maxsize=64)(partial(_matcher, tokenizer))
            found = _vocabularies[tokens] = start, free
        return found


class _Tokens:
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


def _plain(message: str) -> str:
    """An error of the library without its dumps of grammar and state."""
    text = re.split(r"<(?:state|grammar)>|^ *\d+ \| ", message, maxsplit=1, flags=re.M)[0]
    text = re.sub(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?", "", text)
    return " ".join(text.split())


def _whole_characters(text: bytes) -> bytes:
    """A text without the beginning of a character at its end."""
    decoder = getincrementaldecoder("utf-8")("ignore")
    decoder.decode(text)
    return text[: len(text) - len(decoder.getstate()[0])]
