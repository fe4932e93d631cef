"""What was found, as data and as tables of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.claims.arms import TOGETHER, Answer, Arm, Way
from benchmarks.claims.problems import Problem, broken, right
from benchmarks.claims.recipes import RECIPES
from benchmarks.figures import Paired, Share

_RULES: Final[tuple[Way, ...]] = ("token", "text", "every-token")
_SAME: Final = (("DC", "CD"), ("ACB", "CAB"), ("BC", "CB"), ("GS", "SG"))


@dataclass(frozen=True)
class Outcome:
    """What one arm did with its problems, one entry per problem.

    Attributes:
        arm: Who answered, and how.
        answers: What was written.
        right: Whether the final number is right.
        exact: Whether the whole worked answer is, to the byte.
        broken: What in an answer no worked answer holds; None where all of it is well formed.
    """

    arm: Arm
    answers: Sequence[Answer]
    right: Sequence[bool]
    exact: Sequence[bool]
    broken: Sequence[str | None]

    @classmethod
    def of(cls, arm: Arm, asked: Sequence[Problem], answers: Sequence[Answer]) -> Outcome:
        """Marks answers."""
        digits = RECIPES[arm.members[0]].totals.digits
        both = list(zip(asked, answers, strict=True))
        return cls(
            arm,
            answers,
            [right(problem, answer.text) for problem, answer in both],
            [problem.answer == answer.text for problem, answer in both],
            [broken(answer.text, digits) for answer in answers],
        )

    @property
    def texts(self) -> list[str]:
        """The answers' texts."""
        return [answer.text for answer in self.answers]

    @property
    def total_broken(self) -> int:
        """Answers in which something is broken."""
        return sum(part is not None for part in self.broken)

    def total(self, field: str) -> int:
        """The sum of a count over all answers."""
        return sum(getattr(answer, field) for answer in self.answers)

    def share(self, field: str) -> float:
        """A count over all answers, by what was judged."""
        judged = self.total("judged")
        return self.total(field) / judged if judged else 0.0

    @property
    def passes(self) -> list[float]:
        """Forward passes of each model per token written, drafter first."""
        sums = map(sum, zip(*(answer.passes for answer in self.answers), strict=True))
        return [passes / self.total("tokens") for passes in sums]

    def to_dict(self) -> dict[str, Any]:
        """Its counts, and which problems it got right."""
        return {
            "members": self.arm.title,
            "way": self.arm.way,
            "problems": len(self.right),
            "right": sum(self.right),
            "interval": _share(self.right).interval,
            "exact": sum(self.exact),
            "broken": self.total_broken,
            "tokens": self.total("tokens"),
            "judged": self.total("judged"),
            "unsafe": self.total("unsafe"),
            "ensembled": self.total("ensembled"),
            "changed": self.total("changed"),
            "passes_per_token": self.passes,
            "seconds": sum(answer.seconds for answer in self.answers),
            "right_by_problem": "".join("01"[ok] for ok in self.right),
            "exact_by_problem": "".join("01"[ok] for ok in self.exact),
        }


class Report:
    """All arms of one set of seeds."""

    def __init__(self, seeds: int, outcomes: Mapping[Arm, Outcome]) -> None:
        self.seeds = seeds
        self.outcomes = outcomes

    def best_single(self, members: str) -> Outcome:
        """The member that is best alone; the first of equals."""
        alone = [self.outcomes[Arm(name, "alone")] for name in members]
        return max(alone, key=lambda outcome: sum(outcome.right))

    def some_right(self, members: str) -> int:
        """Problems that at least one member got right alone."""
        alone = [self.outcomes[Arm(name, "alone")].right for name in members]
        return sum(map(any, zip(*alone, strict=True)))

    def claims(self) -> dict[str, bool]:
        """What the package claims, loosely, and whether it holds here."""
        text = {arm.members: o for arm, o in self.outcomes.items() if arm.way == "text"}
        gains = {
            (arm.members, arm.way): (sum(o.right) - sum(self.best_single(arm.members).right))
            / len(o.right)
            for arm, o in self.outcomes.items()
        }
        return {
            "A+C+B by units: 8 points above its best member": gains["ACB", "text"] >= 0.08,
            "A+C+B at every token: 8 points below": gains["ACB", "every-token"] <= -0.08,
            "D+C by units: not below its best member": gains["DC", "text"] >= 0,
            "A+C+B merges less than 5 % of its units": text["ACB"].share("ensembled") < 0.05,
            "By units no word is broken": not any(
                any(part is not None for part in o.broken) for o in text.values()
            ),
            "By units 99 % of the texts are the same, whoever drafts": all(
                same >= 0.99 * of for same, of in self._same("text").values()
            ),
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe data."""
        return {
            "seeds": self.seeds,
            "arms": [outcome.to_dict() for outcome in self.outcomes.values()],
            "same_texts": {way: self._same(way) for way in _RULES[:2]},
        }

    def markdown(self) -> str:
        """As tables."""
        parts = [self._alone(), self._together()]
        if any(arm.way == "text" for arm in self.outcomes):
            parts += [self._compared(), self._drafters()]
        return "\n\n".join(parts) + "\n"

    def _alone(self) -> str:
        rows = [
            [outcome.arm.title, *_marks(outcome)]
            for outcome in self.outcomes.values()
            if outcome.arm.way == "alone"
        ]
        head = ["alone", "right, %", "exact, %", "broken"]
        return _table(head, rows)

    def _together(self) -> str:
        rows = []
        for arm, outcome in self.outcomes.items():
            if arm.way not in _RULES:
                continue
            best = self.best_single(arm.members)
            tested = Paired.of(outcome.right, best.right)
            n = len(outcome.right)
            rows.append(
                [
                    arm.title,
                    arm.way,
                    *_marks(outcome),
                    f"{best.arm.title} {_tested(tested)}",
                    f"{self.some_right(arm.members) / n:.1%}"[:-1],
                    f"{outcome.share('ensembled'):.1%}",
                    f"{outcome.share('unsafe'):.1%}",
                    " + ".join(f"{passes:.2f}" for passes in outcome.passes),
                ]
            )
        head = ["members", "unit", "right, %", "exact, %", "broken", "against the best single"]
        return _table([*head, "some member right, %", "E/T", "unsafe", "passes per token"], rows)

    def _compared(self) -> str:
        rows = []
        for names in TOGETHER:
            old, new = (self.outcomes.get(Arm(names, way)) for way in ("token", "text"))
            if old is None or new is None:
                continue
            same = sum(a == b for a, b in zip(old.texts, new.texts, strict=True))
            rows.append(
                [
                    old.arm.title,
                    f"{_percent(old.right)} → {_percent(new.right)}",
                    _tested(Paired.of(new.right, old.right)),
                    f"{_percent(old.exact)} → {_percent(new.exact)}",
                    _tested(Paired.of(new.exact, old.exact)),
                    f"{same} of {len(old.texts)}",
                ]
            )
        head = ["token → text", "right, %", "won:lost", "exact, %", "won:lost", "same text"]
        return _table(head, rows)

    def _drafters(self) -> str:
        counts = [self._same(way) for way in _RULES[:2]]
        rows = [
            [pair, *("{} of {}".format(*same[pair]) if pair in same else "-" for same in counts)]
            for pair in dict.fromkeys(pair for same in counts for pair in same)
        ]
        return _table(["same text, whoever drafts", "token", "text"], rows)

    def _same(self, way: Way) -> dict[str, tuple[int, int]]:
        """Of how many problems two drafters make the same text, and of how many they could."""
        found = {}
        for pair in _SAME:
            one, other = (self.outcomes.get(Arm(names, way)) for names in pair)
            if one is not None and other is not None:
                texts = list(zip(one.texts, other.texts, strict=True))
                title = f"{one.arm.title} = {other.arm.title}"
                found[title] = (sum(a == b for a, b in texts), len(texts))
        return found


def _marks(outcome: Outcome) -> list[str]:
    return [
        str(_share(outcome.right)),
        _percent(outcome.exact),
        str(outcome.total_broken),
    ]


def _share(marks: Sequence[bool]) -> Share:
    return Share(sum(marks), len(marks))


def _percent(marks: Sequence[bool]) -> str:
    return f"{100 * _share(marks).value:.1f}"


def _tested(test: Paired) -> str:
    p = f"{test.p:.2f}" if test.p >= 0.01 else f"{test.p:.0e}".replace("e-0", "e-")
    return f"{test.won}:{test.lost}, p {p}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
