"""Token tables: bytes, END, doubles, and places that no token can straddle."""

from __future__ import annotations

import pytest
from cases import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_integrations.engine.tokens import END, MAX_UNSETTLED, TokenTable, common_prefix
from safe_integrations.testing import ScriptedMember


def table(symbols: list[bytes | None], end: set[int], encode: object = None) -> TokenTable:
    return TokenTable(symbols, end, encode or (lambda text: [symbols.index(text)]))  # type: ignore[arg-type]


def test_all_end_ids_are_one_symbol() -> None:
    """A model that ends with <|im_end|> and one that ends with <eos> must be able to agree."""
    t = table([b"a", b"<eos>", b"<end_of_turn>", None], {2, 1})
    assert (t.end_id, t.id_of(END), t.symbol(1), t.symbol(2)) == (1, 1, END, END)
    assert t.aliases == [(2, 1)]
    assert t.id_of(b"<eos>") is None, "the text of a special token is not the token"


def test_doubles_stand_behind_the_id_that_the_tokenizer_writes() -> None:
    """A byte-fallback token beside the plain character: the mass must land on the one in use."""
    t = table([b"a", b"a", b"</s>"], {2}, lambda text: [1])
    assert (t.id_of(b"a"), t.aliases) == (1, [(0, 1)])


def test_doubles_that_the_tokenizer_never_writes_stand_behind_the_first() -> None:
    t = table([b"x", b"x", b"</s>", b"y"], {2}, lambda text: [3])
    assert (t.id_of(b"x"), t.aliases) == (0, [(1, 0)])


def test_silent_tokens_have_no_bytes_and_take_no_part() -> None:
    t = table([None, b"a", b"", b"</s>"], {3})
    assert t.silent == [0, 2]
    assert list(t.symbols()) == [None, b"a", None, END]
    with pytest.raises(ValueError, match="token 2 has no bytes"):
        t.symbol(2)


def test_symbol_is_scored_by_its_own_token_or_else_its_first_piece() -> None:
    t = ScriptedMember("m", [b"ab", b"abc"], lambda text: {}).tokens
    assert t.first_piece(b"abc") == t.id_of(b"abc")
    assert t.first_piece(b"abd") == t.id_of(b"ab")
    assert [t.symbol(i) for i in t.pieces(b"abd")] == [b"ab", b"d"]
    assert t.pieces(END) == [t.end_id]


def test_hard_boundary_is_where_no_token_holds_both_bytes() -> None:
    """`ab` and `b ` join a|b and b|space; nothing joins space|a."""
    t = ScriptedMember("m", [b"ab", b"b "], lambda text: {}).tokens
    text = b"ab ab ab"
    assert t.hard_boundary(text, 7, 48) == 6
    assert t.hard_boundary(text, 6, 48) == 6, "the limit itself counts"
    assert t.hard_boundary(text, 5, 48) == 3
    assert t.hard_boundary(text, 2, 48) == 0, "the beginning is a hard boundary"
    assert t.hard_boundary(text, 5, 1) is None, "out of reach"


def test_text_is_settled_up_to_its_last_hard_boundary() -> None:
    """The byte at the end joins what may follow, so its own place is never settled by itself."""
    t = ScriptedMember("m", [b"ab", b"b "], lambda text: {}).tokens
    assert [t.settled(b"ab ab"[:n]) for n in range(1, 6)] == [0, 0, 0, 3, 3]


def test_without_hard_boundaries_the_distance_settles() -> None:
    t = ScriptedMember("m", [b"aa"], lambda text: {}).tokens
    assert t.settled(b"a" * MAX_UNSETTLED) == 0
    assert t.settled(b"a" * 200) == 200 - MAX_UNSETTLED


def test_end_marker_joins_nothing() -> None:
    """END is a symbol, not bytes: its spelling must not make real bytes joinable."""
    t = ScriptedMember("m", [], lambda text: {}).tokens
    assert t.hard_boundary(b"<end>", 4, 48) == 4


def test_same_tokens_means_same_ids() -> None:
    """Ids may be shared between two models only if every one of them means the same."""
    a = table([b"a", b"b", b"</s>"], {2})
    assert a.same_tokens(a)
    assert a.same_tokens(table([b"a", b"b", b"</eos>"], {2}))
    assert not a.same_tokens(table([b"b", b"a", b"</s>"], {2}))
    assert not a.same_tokens(table([b"a", b"b", b"</s>", b"c"], {2}))
    assert not a.same_tokens(table([b"a", b"b", b"</s>"], {1}))


def test_padding_makes_no_difference_to_a_family() -> None:
    """Qwen2.5 has 151,936 rows at 1.5B and 152,064 at 7B, of the same tokens."""
    small, large = table([b"a", b"</s>"], {1}), table([b"a", b"</s>", None, None], {1})
    assert small.same_tokens(large) and large.same_tokens(small)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_settled_boundaries_survive_any_continuation(data: st.DataObject) -> None:
    """If they did not, a verdict would depend on where the lookahead ended."""
    world = data.draw(worlds(models=st.just(1)))
    t = ScriptedMember("m", list(world.vocabularies[0]), lambda text: {}).tokens
    cut = data.draw(st.integers(1, len(world.plan)))
    text = world.plan[:cut]
    longer = text + data.draw(st.sampled_from([world.plan[cut:], world.plan, world.plan[-3:]]))

    def tokens_within(data: bytes, end: int) -> list[bytes]:
        out, at = [], 0
        for i in t.encode(data):
            at += len(t.symbol(i))
            if at <= end:
                out.append(t.symbol(i))
        return out

    settled = t.settled(text)
    assert 0 <= settled < len(text)
    assert sum(map(len, tokens_within(text, settled))) == settled
    assert tokens_within(text, settled) == tokens_within(longer, settled)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_a_common_beginning_is_as_long_as_it_can_be(
    shared: list[int], a: list[int], b: list[int]
) -> None:
    """One too many, and a cache would be used for ids that it has never seen."""
    a, b = shared + a, shared + b
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert a[length : length + 1] != b[length : length + 1] or length in (len(a), len(b))
