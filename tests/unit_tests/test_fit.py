"""How two tokenizers fit."""

from __future__ import annotations

import pytest

from safe_integrations.evaluate.fit import SAMPLES, Fit, fits, total
from safe_integrations.testing import ScriptedMember, follows


def test_fit_counts_the_drafters_boundaries_that_are_common() -> None:
    """The verifier's own boundaries are no places to check a draft at."""
    words = ScriptedMember("words", [b"The", b" quick"], follows(b"")).tokens
    bytes_only = ScriptedMember("bytes", [], follows(b"")).tokens
    length = len(SAMPLES["English"])
    assert fits(bytes_only, words)["English"] == Fit(length, length - 7, length)
    assert fits(words, bytes_only)["English"] == Fit(length - 7, length - 7, length)


def test_a_fit_tells_shares_and_distances() -> None:
    fit = Fit(boundaries=10, common=4, length=30)
    assert (fit.share, fit.bytes_between) == (0.4, 7.5)
    nowhere = Fit(boundaries=10, common=0, length=30)
    assert (nowhere.share, nowhere.bytes_between) == (0, 30)


def test_all_samples_are_added_up() -> None:
    tokens = ScriptedMember("bytes", [], follows(b"")).tokens
    found = fits(tokens, tokens)
    assert found.keys() == {*SAMPLES, "all"}
    assert found["all"] == total([found[kind] for kind in SAMPLES])
    assert found["all"].length == sum(len(text.encode()) for text in SAMPLES.values())
    assert found["all"].share == pytest.approx(1)
