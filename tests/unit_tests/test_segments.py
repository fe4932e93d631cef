"""A model's view of the text is what tokenising the whole text gives, at the cost of the tail."""

from __future__ import annotations

from cases import World, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_integrations.engine.segments import Segmentation
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.testing import ScriptedMember


def table_of(vocabulary: list[bytes]) -> TokenTable:
    return ScriptedMember("m", vocabulary, lambda text: {}).tokens


def ends(table: TokenTable, ids: list[int]) -> list[int]:
    return [sum(len(table.symbol(i)) for i in ids[: n + 1]) for n in range(len(ids))]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_edits_leave_the_tokenisation_of_the_whole_text(data: st.DataObject) -> None:
    """A shorter or longer tail may change tokens before it: none may go stale."""
    world: World = data.draw(worlds(models=st.just(1), hard=data.draw(st.booleans())))
    table = table_of(list(world.vocabularies[0]))
    view, text = Segmentation(table), bytearray()
    for _ in range(data.draw(st.integers(1, 6))):
        kept = data.draw(st.integers(0, len(text)))
        at = data.draw(st.integers(0, len(world.plan)))
        del text[kept:]
        text += world.plan[at:] + world.plan[: data.draw(st.integers(0, 3))]
        view.update(text, kept)
        assert view.ids == table.encode(bytes(text))
        assert view.ends == ends(table, view.ids)


def test_long_text_without_hard_boundaries_is_tokenised_as_a_whole_would_be() -> None:
    """Behind 512 bytes of one word the view restarts at a token's end, not inside a character."""
    table = table_of(["中".encode(), "中中中".encode(), b"\xad\xe4"])
    text, view = bytearray(), Segmentation(table)
    for _ in range(400):
        before = len(text)
        text += "中".encode()
        view.update(text, before)
    assert view.ids == table.encode(bytes(text))


def test_only_the_tail_is_tokenised_again() -> None:
    """Encoding the whole text in every cycle makes the cost of an answer quadratic."""
    asked: list[int] = []
    inner = table_of([b"ab", b" ab"])
    table = TokenTable(
        inner.symbols(), {inner.end_id}, lambda t: asked.append(len(t)) or inner.encode(t)
    )
    asked.clear()
    text, view = bytearray(), Segmentation(table)
    for _ in range(300):
        before = len(text)
        text += b" ab"
        view.update(text, before)
    assert view.ids == inner.encode(bytes(text))
    assert max(asked) <= 9


def test_index_counts_the_tokens_before_an_offset() -> None:
    """None inside a token is what makes a place unsafe (Eq. 1); the text's end is a boundary."""
    view = Segmentation(table_of([b"abc", b"de"]))
    view.update(b"abcdex", 0)
    assert [view.index_at(at) for at in range(8)] == [0, None, None, 1, None, 2, 3, None]


def test_emptied_text_leaves_no_tokens() -> None:
    """An answer whose first token is replaced starts over from nothing."""
    view = Segmentation(table_of([b"ab"]))
    view.update(b"abab", 0)
    view.update(b"", 0)
    assert (view.ids, view.ends, view.index_at(0)) == ([], [], 0)
