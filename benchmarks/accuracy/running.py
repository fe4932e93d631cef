"""Ways to answer, and what is kept of every answer: a line of a file, so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Protocol

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.model import Member
from safe_integrations.messages import Message
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine

Tell = Callable[[str], None]


def _pair(unit: str, swapped: bool = False) -> Callable[[Sequence[Member]], SafeEngine]:
    def made(members: Sequence[Member]) -> SafeEngine:
        first, *rest = [*members[1:], members[0]] if swapped else members
        return SafeEngine(first, rest, EnsembleConfig.model_validate({"unit": unit}))

    return made


ARMS: Final[Mapping[str, Callable[[Sequence[Member]], SafeEngine]]] = {
    "drafter": lambda members: SafeEngine(members[0]),
    "verifier": lambda members: SafeEngine(members[1]),
    "token": _pair("token"),
    "text": _pair("text"),
    "text-swapped": _pair("text", swapped=True),
    "token-swapped": _pair("token", swapped=True),
}
"""Name -> the engine, of the models named, drafter first."""


class Problem(Protocol):
    """Something to answer."""

    @property
    def name(self) -> str:
        """Unique among all problems."""

    def messages(self) -> list[Message]:
        """What the models are asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        problem: Name of the problem.
        asked: Hash of the prompt and the options: an answer to something else is not used again.
        arm: How it was written.
        text: The answer.
        ended: Whether it came to its end by itself.
        closed_at: From which byte on max_tokens decided what was written, if it did.
        tokens: Its length in the drafter's tokens.
        seconds: Wall time.
        judged: Pieces that were judged.
        ensembled: Of these, merged.
        changed: Of these, written otherwise.
        passes: Forward passes of each model, drafter first.
    """

    problem: str
    asked: str
    arm: str
    text: str
    ended: bool
    closed_at: int | None
    tokens: int
    seconds: float
    judged: int
    ensembled: int
    changed: int
    passes: tuple[int, ...]

    @classmethod
    def of(cls, problem: str, asked: str, arm: str, result: Result) -> Answer:
        """What is kept of a result."""
        done = result.statistics
        return cls(
            problem,
            asked,
            arm,
            result.text,
            result.finish_reason == "stop",
            done.closed_at,
            done.tokens,
            round(done.seconds, 3),
            done.judged,
            done.ensembled,
            done.changed,
            tuple(model.forward_passes for model in done.models),
        )

    @property
    def free(self) -> tuple[str, bool]:
        """What was written before max_tokens decided, and whether that is all."""
        if self.closed_at is None:
            return self.text, self.ended
        return self.text.encode()[: self.closed_at].decode(errors="ignore"), False


def asked(problem: Problem, options: GenerationConfig) -> str:
    """A hash of all that an answer depends on but the models."""
    said = [[message.role, message.content] for message in problem.messages()]
    key = json.dumps([said, options.model_dump(mode="json", exclude_defaults=True)], sort_keys=True)
    return sha256(key.encode()).hexdigest()[:16]


def read(file: Path) -> list[Answer]:
    """The answers of earlier runs. A last line that was cut is left out."""
    answers = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        answers.append(Answer(**{**told, "passes": tuple(told["passes"])}))
    return answers


def answer_all(
    problems: Sequence[tuple[Problem, GenerationConfig]],
    arms: Sequence[str],
    members: Callable[[], Sequence[Member]],
    file: Path,
    seconds: float | None = None,
    tell: Tell = lambda _: None,
) -> int:
    """Writes what is missing of the answers, each to the file as soon as it is there.

    All arms answer a problem before the next one's turn comes, so its prompt is read once.

    Args:
        problems: What to answer, and how.
        arms: Names of `ARMS`.
        members: Loads the models, drafter first. Not called where nothing is missing.
        file: JSON lines.
        seconds: Begin no answer later than this; None has no end.
        tell: Told what is going on.

    Returns:
        How many answers are still missing.
    """
    there = {(answer.problem, answer.asked, answer.arm) for answer in read(file)}
    wanted = [(arm, problem, options) for problem, options in problems for arm in arms]
    missing = [w for w in wanted if (w[1].name, asked(w[1], w[2]), w[0]) not in there]
    if not missing or seconds == 0:
        return len(missing)
    loaded = members()
    engines = {arm: ARMS[arm](loaded) for arm in dict.fromkeys(arm for arm, *_ in missing)}
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        _add(file, "")  # behind a line that was cut
    start = perf_counter()
    for done, (arm, problem, options) in enumerate(missing):
        if seconds is not None and perf_counter() - start > seconds:
            return len(missing) - done
        tell(f"{len(missing) - done} answers to write, now {problem.name} by {arm}")
        result = engines[arm].complete(problem.messages(), options)
        answer = Answer.of(problem.name, asked(problem, options), arm, result)
        append(file, answer)
    return 0


def append(file: Path, record: Any) -> None:
    """Adds a line: a dataclass as JSON. The folder of the file is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _add(file, json.dumps(asdict(record), ensure_ascii=False))


def _add(file: Path, line: str) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(line + "\n")
