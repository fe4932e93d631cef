"""Payloads are what docs/events.md says, and hold enough to put an answer together again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Ensembled, Event, Finished, Verdict, Verified
from safe_integrations.report import payloads
from safe_integrations.report.result import Result, read_result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

DOCS = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
TEXT = "Paris 🗼, 你好.\n<end>"
OTHER = "Paris 🗼, 您好.\n<end>"


def events(mode: Any = "safe", stop: str | None = None) -> list[Event]:
    drafter = ScriptedMember("drafter", [b"Par", b"is"], follows(TEXT.encode(), sure=0.6))
    verifier = ScriptedMember("verifier", [b"Pari"], follows(OTHER.encode(), sure=0.7))
    engine = SafeEngine(drafter, [verifier], EnsembleConfig(mode=mode))
    return list(engine.generate("hi", GenerationConfig(stop=stop)))


def section(heading: str) -> set[str]:
    """The fields that the tables below a heading name."""
    body = DOCS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", body, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def keys(data: Any, prefix: str = "") -> Iterator[str]:
    """`a`, `b[].c`: every field of a payload."""
    for name, value in data.items():
        yield prefix + name
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from keys(value[0], f"{prefix}{name}[].")


def test_every_field_is_documented_and_the_other_way_round() -> None:
    happened = events()
    verified = [e for e in happened if isinstance(e, Verified)]
    ensembled = next(e for e in happened if isinstance(e, Ensembled))
    finished = next(e for e in happened if isinstance(e, Finished))
    start = payloads.generation_start(["a"], "safe")
    assert set(keys(start)) == section("`safe_generation_start`")

    documented = section("`safe_verification`") - set(Verdict)
    got = set()
    for event in verified:
        for key in keys(payloads.verification(event)):
            got.add(key.rsplit("[].", 1)[-1])
        for piece in payloads.verification(event)["pieces"]:
            got |= piece.keys()
    assert got == documented
    assert set(Verdict) <= section("`safe_verification`")

    known = documented | section("`safe_ensemble`") - {"pieces", "pending", "dropped"}
    vote = {"model", "token", "probability", "best", "best_probability"}
    wanted = known - {"pieces", "pending", "dropped", "hex"} - vote
    data = payloads.ensemble(ensembled)
    assert {key for key in keys(data) if not key.startswith("votes[]")} - {"hex"} == wanted
    assert set(keys(payloads.generation_end(finished))) == section("`safe_generation_end`")


@pytest.mark.parametrize("mode", ["safe", "every-token", "drafter-only"])
@pytest.mark.parametrize("stop", [None, "好", "zzz"])
def test_an_answer_can_be_put_together_again(mode: Any, stop: str | None) -> None:
    happened = events(mode, stop)
    result = Result.of(happened)
    rounds = [payloads.round_of(e) for e in happened if isinstance(e, Verified)]
    end = payloads.generation_end(next(e for e in happened if isinstance(e, Finished)))
    rounds, end = json.loads(json.dumps([rounds, end], allow_nan=False))
    read = read_result(rounds, end)
    assert read.text == result.text
    assert read.finish_reason == result.finish_reason
    assert len(read.pieces) == len(result.pieces)
    for got, wanted in zip(read.pieces, result.pieces, strict=True):
        assert (got.start, got.end, got.written) == (wanted.start, wanted.end, wanted.written)
        assert got.verdict == wanted.verdict
        if wanted.ensembled:
            assert [v.model for v in got.votes] == [v.model for v in wanted.votes]
            assert got.candidates[0].probability == round(wanted.candidates[0].probability, 6)
    assert read.statistics.ensembled == result.statistics.ensembled
    assert [m.name for m in read.statistics.models] == [m.name for m in result.statistics.models]
    assert read._repr_html_()


def test_payloads_stay_small() -> None:
    """A wide union of candidates must not end up in every tracer."""
    config = EnsembleConfig(union_top_k=200)
    spread = {bytes([b]): 1 / 200 for b in range(1, 201)}
    member = ScriptedMember("a", [], lambda text: spread)
    engine = SafeEngine(member, [ScriptedMember("b", [], lambda text: spread)], config)
    for event in engine.generate("hi", GenerationConfig(max_tokens=3)):
        if isinstance(event, Ensembled):
            assert len(event.piece.candidates) > 100
            assert len(json.dumps(payloads.ensemble(event))) < 2000
