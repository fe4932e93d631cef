"""Models that compute elsewhere: asked at the same time, and the next draft meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from threading import Event
from typing import Any, Literal

import pytest
from elsewhere import ANSWER, RemoteMember

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.lookahead import AutoLookahead
from safe_integrations.errors import GenerationCancelled
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows

TEXT = b"one two three four five six seven eight nine ten"
UNITS: tuple[Literal["text", "token"], ...] = ("text", "token")


def answer(members: Sequence[Any], **config: Any) -> Result:
    engine = SafeEngine(members[0], members[1:], EnsembleConfig(**config))
    return engine.complete("Go.", GenerationConfig(max_tokens=60))


def scripted(name: str, text: bytes = TEXT, sure: float = 0.9) -> ScriptedMember:
    return ScriptedMember(name, [], follows(text, sure=sure))


@pytest.mark.parametrize("unit", UNITS)
def test_a_drafter_elsewhere_is_asked_for_several_tokens_at_once(unit: str) -> None:
    drafter, verifier = RemoteMember(scripted("drafter")), scripted("verifier")
    result = answer([drafter, verifier], unit=unit, lookahead=5)
    assert result.text.encode() == TEXT
    kinds = Counter(kind for kind, _ in drafter.requests)
    assert kinds["draft"] <= len(TEXT) / 5 + 3
    assert kinds["score"] == 0


@pytest.mark.parametrize("unit", UNITS)
def test_a_verifier_elsewhere_is_asked_once_a_cycle_and_reads_its_prompt_first(unit: str) -> None:
    verifier = RemoteMember(scripted("verifier"))
    result = answer([scripted("drafter"), verifier], unit=unit)
    assert verifier.requests[0] == ("score", 0)
    assert len(verifier.requests) <= 1 + result.statistics.cycles


def test_statistics_tell_what_servers_were_asked_and_sent() -> None:
    drafter, verifiers = RemoteMember(scripted("drafter")), [scripted("here"), scripted("there")]
    there = RemoteMember(verifiers[1])
    told = answer([drafter, verifiers[0], there]).statistics.models
    assert [model.requests for model in told] == [len(drafter.requests), 0, len(there.requests)]
    assert all(model.received_bytes == ANSWER * model.requests for model in told)


class Waits(ScriptedMember):
    """Does not answer before an event, once it has read its prompt."""

    def __init__(self, name: str, event: Event) -> None:
        super().__init__(name, [], follows(TEXT))
        self.event = event

    def start(self, prompt: Sequence[int], cancel: object = None) -> ScriptedSession:
        session = super().start(prompt)
        score = session.score

        def wait(ids: Sequence[int], since: int) -> Any:
            assert not ids or self.event.wait(timeout=20), "nobody has drafted meanwhile"
            return score(ids, since)

        session.score = wait  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_drafter_goes_on_while_the_verifiers_are_waited_for(unit: str, elsewhere: bool) -> None:
    """The verifier answers only when more has been drafted than it was asked about."""
    gone_on = Event()

    def script(text: bytes) -> Any:
        if len(text) > 12:
            gone_on.set()
        return follows(TEXT)(text)

    drafter: Any = ScriptedMember("drafter", [], script)
    verifier = RemoteMember(Waits("verifier", gone_on))
    drafter = RemoteMember(drafter) if elsewhere else drafter
    result = answer([drafter, verifier], unit=unit, lookahead=8)
    assert result.text.encode() == TEXT


@pytest.mark.parametrize("unit", UNITS)
def test_a_drafter_elsewhere_is_asked_for_what_is_behind_all_that_it_has_told(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of two tokens out of six that are told: the next six are under way before they end."""
    monkeypatch.setattr(AutoLookahead, "at_once", 6)
    monkeypatch.setattr(AutoLookahead, "goes_on", lambda self, p, known=False: False)
    drafter, verifier = RemoteMember(scripted("drafter")), RemoteMember(scripted("verifier"))
    assert answer([drafter, verifier], unit=unit).text.encode() == TEXT
    behind = [count for _, count in drafter.requests]
    assert behind == [*range(0, 6 * len(behind), 6)], "never twice, and never waited for"
    assert drafter.dropped <= 1  # at the end


@pytest.mark.parametrize("unit", UNITS)
def test_what_was_drafted_ahead_in_vain_is_dropped(unit: str) -> None:
    drafter = RemoteMember(scripted("drafter", TEXT.replace(b"five", b"FIVE"), sure=0.55))
    verifiers = [RemoteMember(scripted(f"v{n}", sure=0.9)) for n in range(2)]
    result = answer([drafter, *verifiers], unit=unit, lookahead=5)
    assert b"one two three four five" in result.text.encode()
    assert drafter.dropped >= 1


def test_a_token_is_judged_by_what_it_was_asked_about_only() -> None:
    """`every-token` has no draft to go on with."""
    members = [RemoteMember(scripted(name)) for name in ("a", "b", "c")]
    assert answer(members, unit="token", mode="every-token").text.encode() == TEXT


def test_a_cancelled_answer_waits_for_nobody() -> None:
    """Not for what it has asked for either: that is cancelled."""
    never = Event()
    stop = Event()
    verifier = RemoteMember(Waits("verifier", never))
    engine = SafeEngine(scripted("drafter"), [verifier])
    events = engine.generate("Go.", cancel=stop.is_set)
    next(events)
    stop.set()
    with pytest.raises(GenerationCancelled):
        list(events)
    never.set()
