"""What follows from events alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from cases import World, configs, engine_of, options, worlds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safe_integrations.engine.events import (
    Drafted,
    Ensembled,
    Event,
    Finished,
    Piece,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)

COUNTED = {"cycles", "drafted", "judged", "unsafe", "ensembled", "changed"}


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.data(), worlds())
def test_the_counts_of_an_answer_are_a_fold_over_its_events(data: Any, world: World) -> None:
    """Every reader of events had counts of its own, and one that forgot a case was not noticed."""
    mode = data.draw(st.sampled_from(["safe", "safe", "every-token", "drafter-only"]))
    unit = data.draw(st.sampled_from(["text", "token"]))
    config = data.draw(configs(len(world.vocabularies), mode=mode, unit=unit, weights=None))
    asked = data.draw(options(world.plan))
    if mode == "safe" and data.draw(st.booleans()):
        asked = asked.model_copy(update={"temperature": 1.0, "seed": 1})
    folded = Statistics()
    for event in engine_of(world.members(), config).generate("Go.", asked):
        folded.add(event)
    assert isinstance(event, Finished)
    for name in COUNTED:
        assert getattr(folded, name) == getattr(event.statistics, name), name


@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_is_counted_where_it_belongs(verdict: Verdict) -> None:
    """A judged token counts once, and as what the fields of `Statistics` promise."""
    folded = Statistics()
    events: list[Event] = [
        Drafted(3, 0, (b"a", b"b")),
        Verified(3, (Piece(0, 1, b"a", b"a", verdict),), 1, 0),
        Ensembled(3, Piece(0, 1, b"a", b"a", verdict)),
        TextDelta("a"),
    ]
    for event in events:
        folded.add(event)
    told = {name: value for name, value in asdict(folded).items() if value}
    assert told == {"cycles": 3, "drafted": 2, "judged": 1} | {
        Verdict.UNSAFE: {"unsafe": 1},
        Verdict.CLOSED: {"closed": 1},
        Verdict.CONFIRMED: {"ensembled": 1},
        Verdict.CHANGED: {"ensembled": 1, "changed": 1},
    }.get(verdict, {})
