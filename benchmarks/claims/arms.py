"""What is compared: members alone, together by either rule, and ensembled at every token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from benchmarks.claims.problems import Problem
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.model import Member
from safe_integrations.safe_engine import SafeEngine

Way = Literal["alone", "token", "text", "every-token"]
"""A member alone; SAFE judging by the drafter's tokens or by units of the text; no SAFE at all."""

_LONGEST: Final = 160  # tokens; worked answers have at most 105


class Arm(NamedTuple):
    """One way to answer.

    Attributes:
        members: Their letters, drafter first.
        way: How they answer.
    """

    members: str
    way: Way

    @property
    def title(self) -> str:
        """As tables call the members: A+C+B."""
        return "+".join(self.members)


TOGETHER: Final = ("DC", "CD", "ACB", "CAB", "BC", "CB", "GS", "SG")
ARMS: Final = (
    *(Arm(name, "alone") for name in "ABCDGS"),
    *(Arm(names, "token") for names in TOGETHER),
    *(Arm(names, "text") for names in TOGETHER),
    Arm("ACB", "every-token"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and what it took.

    Attributes:
        text: What was written.
        tokens: In tokens of the drafter.
        judged: Drafted tokens or units that were looked at.
        unsafe: Of these, kept unchecked.
        ensembled: Of these, merged.
        changed: Of these, replaced.
        passes: Forward passes of each model, drafter first.
        seconds: Wall time.
    """

    text: str
    tokens: int
    judged: int
    unsafe: int
    ensembled: int
    changed: int
    passes: tuple[int, ...]
    seconds: float


def engine_of(arm: Arm, members: Mapping[str, Member]) -> SafeEngine:
    """The engine of an arm. Nothing it decides or counts depends on measured time."""
    drafter, *verifiers = (members[name] for name in arm.members)
    config = EnsembleConfig(
        mode="every-token" if arm.way == "every-token" else "safe",
        unit="token" if arm.way == "token" else "text",
        lookahead=5,
        prompt_lookup=False,
    )
    return SafeEngine(drafter, verifiers, config)


def answers(
    arm: Arm,
    members: Mapping[str, Member],
    asked: Sequence[Problem],
    file: Path,
    tell: Callable[[str], None],
    *,
    resume: bool,
) -> list[Answer]:
    """What an arm answers, greedily. Kept in a file.

    Args:
        arm: Who answers.
        members: Loaded members by their letters.
        asked: The problems.
        file: Where the answers are kept.
        tell: Told what is going on.
        resume: Whether answers to as many problems that lie in the file are taken from there.
    """
    if resume and file.exists():
        kept = [_answer(item) for item in json.loads(file.read_text("utf-8"))]
        if len(kept) >= len(asked):
            return kept[: len(asked)]
    engine = engine_of(arm, members)
    made: list[Answer] = []
    for problem in asked:
        result = engine.complete(problem.question, GenerationConfig(max_tokens=_LONGEST))
        s = result.statistics
        passes = tuple(model.forward_passes for model in s.models)
        counts = (s.tokens, s.judged, s.unsafe, s.ensembled, s.changed)
        made.append(Answer(result.text, *counts, passes, s.seconds))
        if len(made) % 50 == 0:
            tell(f"{arm.title} {arm.way}: {len(made)} of {len(asked)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([asdict(answer) for answer in made], indent=0) + "\n", "utf-8")
    return made


def _answer(item: dict[str, Any]) -> Answer:
    return Answer(**item | {"passes": tuple(item["passes"])})
