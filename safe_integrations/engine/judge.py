"""Whether the models agree on a drafted token (section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safe_integrations.engine.events import Verdict, Vote


def consensus(votes: Sequence[Vote], weights: Sequence[float], above: float) -> Verdict | None:
    """Judges one drafted token at a place where every model has a token boundary.

    Either check proves that the drafted token already is the most probable one of the averaged
    distribution (appendix C), so ensembling would change nothing.

    Args:
        votes: One per model, the drafter's first.
        weights: One per model, summing to 1.
        above: Threshold of check (b), at least 1/2.

    Returns:
        UNANIMOUS where every verifier's favourite is its own token here (a); MAJORITY where the
        mean probability of the models' own tokens is above the threshold (b); else None.
    """
    if all(vote.token == vote.best for vote in votes[1:]):
        return Verdict.UNANIMOUS
    mean = math.fsum(w * vote.probability for w, vote in zip(weights, votes, strict=True))
    return Verdict.MAJORITY if mean > above else None
