"""Bytes become text: whole characters, no part of a stop string, however the bytes are cut."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_integrations.engine.text import TextStream


def read(chunks: list[bytes], stop: list[str]) -> tuple[str, int, int | None]:
    stream = TextStream(stop)
    deltas = [stream.push(chunk) for chunk in chunks] + [stream.finish()]
    for delta in deltas:
        delta.encode()  # a lone surrogate would raise
    return "".join(deltas), stream.shown, stream.stopped_at


def naive(data: bytes, stops: list[str]) -> tuple[bytes, int | None]:
    """Cuts at the stop string that is completed first, the longest of equals."""
    for end in range(len(data) + 1):
        for stop in sorted((s.encode() for s in stops), key=len, reverse=True):
            if data[:end].endswith(stop):
                return data[: end - len(stop)], end
    return data, None


texts = st.lists(st.sampled_from(["a", "b", "ab", "é", "中", "😀", "e\u0301"]), max_size=12)
stops = st.lists(st.text("abé中", min_size=1, max_size=3), max_size=3)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts, stops, st.lists(st.integers(0, 40), max_size=8), st.integers(0, 3))
def test_cutting_the_bytes_differently_changes_nothing(
    parts: list[str], stop: list[str], cuts: list[int], broken: int
) -> None:
    """Half characters at both ends included: they are dropped or shown as U+FFFD, never raise."""
    data = "".join(parts).encode()[broken:]
    data = data[: len(data) - broken] if broken else data
    bounds = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    chunks = [data[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    kept, stopped_at = naive(data, stop)
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(kept)
    assert read(chunks, stop) == (text, len(kept), stopped_at)
    assert read([bytes([b]) for b in data], stop) == (text, len(kept), stopped_at)


def test_character_is_held_back_until_it_is_whole() -> None:
    """An emoji of four tokens must not flash up as four replacement characters."""
    stream = TextStream()
    assert [stream.push(bytes([b])) for b in "😀!".encode()] == ["", "", "", "😀", "!"]


def test_half_a_character_at_the_end_is_dropped() -> None:
    assert read([b"ok", "中".encode()[:2]], []) == ("ok", 4, None)


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assert read([b"a\xff", b"b"], [])[0] == "a\ufffdb"


@pytest.mark.parametrize(
    ("chunks", "stop", "shown", "stopped_at"),
    [
        ([b"one ST", b"OP two"], ["STOP"], "one ", 8),  # across chunks: never shown in part
        ([b"one ST", b"ART"], ["STOP"], "one START", None),  # what was held back is given out
        ([b"aab"], ["ab", "aab"], "", 3),  # completed together: the longer is cut
        ([b"abcd"], ["abcd", "bc"], "a", 3),  # the first to be completed wins
        ([b"aaab"], ["aab"], "a", 4),  # a false start inside the held text
        ([b"x", b"STOP"], ["STOP"], "x", 5),  # at the very end
        ([b"STOP"], ["STOP"], "", 4),  # at the very beginning
        ([b"x\nSTO"], ["\nSTOP"], "x\nSTO", None),  # never completed: all is shown
        (["中".encode()[:1], "中".encode()[1:]], ["中"], "", 3),  # inside a character
    ],
)
def test_stop_strings(
    chunks: list[bytes], stop: list[str], shown: str, stopped_at: int | None
) -> None:
    """One table of the ways a stop string comes, or does not."""
    text, _, at = read(chunks, stop)
    assert (text, at) == (shown, stopped_at)


def test_nothing_is_shown_after_a_stop_string() -> None:
    stream = TextStream(["."])
    assert [stream.push(b"a.b"), stream.push(b"c"), stream.finish()] == ["a", "", ""]
