"""Consensus: when the models agree on a drafted token (section 3.2)."""

from __future__ import annotations

import pytest

from safe_integrations.engine.events import Verdict, Vote
from safe_integrations.engine.judge import consensus

UNANIMOUS, MAJORITY = Verdict.UNANIMOUS, Verdict.MAJORITY
HALF = (0.5, 0.5)


def yes(p: float) -> Vote:
    return Vote("m", (b"t",), p, b"t", p)


def no(p: float) -> Vote:
    return Vote("m", (b"t",), p, b"other", 0.9 - p)


@pytest.mark.parametrize(
    ("votes", "weights", "above", "verdict"),
    [
        # (a) every verifier's favourite is its own token: how likely it is does not matter
        ([yes(0.2), yes(0.1)], HALF, 0.5, UNANIMOUS),
        ([yes(0.2), yes(0.1), yes(0.1)], (1 / 3,) * 3, 0.5, UNANIMOUS),
        # one verifier who prefers another token is enough to ask for (b)
        ([yes(0.2), yes(0.1), no(0.1)], (1 / 3,) * 3, 0.5, None),
        # (b) mean above the threshold: (0.9 + 0.2) / 2 = 0.55
        ([yes(0.9), no(0.2)], HALF, 0.5, MAJORITY),
        ([yes(0.9), no(0.05)], HALF, 0.5, None),
        # exactly the threshold is not above it: (0.75 + 0.25) / 2
        ([yes(0.75), no(0.25)], HALF, 0.5, None),
        # the threshold is a knob
        ([yes(0.9), no(0.2)], HALF, 0.6, None),
        # weights count: 0.8 * 0.6 + 0.2 * 0.3 = 0.54, equal shares would give 0.45
        ([yes(0.6), no(0.3)], (0.8, 0.2), 0.5, MAJORITY),
        ([yes(0.6), no(0.3)], HALF, 0.5, None),
        # unanimity is asked of the verifiers; the drafter proposed it in any case
        ([no(0.1), yes(0.6)], HALF, 0.5, UNANIMOUS),
        # a model without weight still is asked, as in the paper's check (a)
        ([yes(0.4), no(0.4)], (1.0, 0.0), 0.5, None),
    ],
)
def test_verdicts(
    votes: list[Vote], weights: tuple[float, ...], above: float, verdict: Verdict | None
) -> None:
    assert consensus(votes, weights, above) is verdict
