"""What the answers of all arms come to, as data and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import jsonschema

from benchmarks.accuracy.extraction import FAMILIES, Extraction
from benchmarks.accuracy.gsm8k import WordProblem
from benchmarks.accuracy.running import ARMS, Answer
from benchmarks.figures import Paired, Share, agree

AGAINST: Final = (
    ("text", "token"),
    ("text", "drafter"),
    ("text", "verifier"),
    ("token", "drafter"),
    ("token", "verifier"),
    ("text-swapped", "token-swapped"),
)
"""Which arms are compared: the first may have won."""

ORDERS: Final = (("text", "text-swapped"), ("token", "token-swapped"))
"""Arms that differ only in who drafts."""


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer, and what it is worth.

    Attributes:
        answer: The answer.
        parts: Of the answer, which are right: one per field, or one alone.
        valid: Whether it is what its response format asks for; True where there is none.
        family: Which kind of problem it answers.
    """

    answer: Answer
    parts: tuple[bool, ...]
    valid: bool
    family: str

    @property
    def right(self) -> bool:
        """Whether all of it is right."""
        return all(self.parts)


def scored(problem: Extraction | WordProblem, answer: Answer) -> Scored:
    """What one answer is worth."""
    if isinstance(problem, WordProblem):
        return Scored(answer, (problem.score(answer.text),), True, "gsm8k")
    parts = tuple(problem.score(answer.text).values())
    return Scored(answer, parts, is_valid(answer.text, problem.schema), problem.family)


def is_valid(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text is JSON that its schema validates."""
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


Arms = Mapping[str, Mapping[str, Scored]]
"""Arm -> name of the problem -> its answer."""


def summary(arms: Arms) -> dict[str, Any]:
    """All figures of one task as JSON-safe data."""
    compared = [(a, b) for a, b in AGAINST if arms.get(a) and arms.get(b)]
    return {
        "arms": {arm: _arm([*arms[arm].values()]) for arm in ARMS if arms.get(arm)},
        "paired": {f"{a} : {b}": _paired(arms[a], arms[b]) for a, b in compared},
        "orders": {
            f"{a} = {b}": _share(_same(arms[a], arms[b]))
            for a, b in ORDERS
            if arms.get(a) and arms.get(b)
        },
    }


def _arm(found: Sequence[Scored]) -> dict[str, Any]:
    parts = [part for one in found for part in one.parts]
    answers = [one.answer for one in found]
    tokens = sum(answer.tokens for answer in answers)
    passes = zip(*(answer.passes for answer in answers), strict=True)
    judged = sum(answer.judged for answer in answers)
    families = [name for name in FAMILIES if any(one.family == name for one in found)]
    return {
        "right": _share(Share(sum(one.right for one in found), len(found))),
        "parts": _share(Share(sum(parts), len(parts))),
        "valid": _share(Share(sum(one.valid for one in found), len(found))),
        "ended": sum(answer.ended and answer.closed_at is None for answer in answers),
        "tokens": tokens,
        "tokens_per_second": tokens / sum(answer.seconds for answer in answers),
        "ensembled": sum(answer.ensembled for answer in answers) / max(1, judged),
        "changed": sum(answer.changed for answer in answers) / max(1, judged),
        "passes_per_token": [sum(model) / tokens for model in passes],
        "families": {
            name: sum(one.right for one in found if one.family == name) for name in families
        },
    }


def _share(share: Share) -> dict[str, Any]:
    return {**asdict(share), "interval": share.interval}


def _paired(new: Mapping[str, Scored], old: Mapping[str, Scored]) -> dict[str, Any]:
    both = [name for name in new if name in old]
    whole = Paired.of([new[n].right for n in both], [old[n].right for n in both])
    parts = Paired.of([sum(new[n].parts) for n in both], [sum(old[n].parts) for n in both])
    return {
        "n": len(both),
        "right": {**asdict(whole), "p": whole.p},
        "parts": {**asdict(parts), "p": parts.p},
        "won": [n for n in both if new[n].right > old[n].right],
        "lost": [n for n in both if new[n].right < old[n].right],
        "same_text": sum(new[n].answer.text == old[n].answer.text for n in both),
    }


def _same(left: Mapping[str, Scored], right: Mapping[str, Scored]) -> Share:
    pairs = [(left[name].answer.free, right[name].answer.free) for name in left if name in right]
    return Share(sum(agree(*one, *other) for one, other in pairs), len(pairs))


def markdown(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as tables."""
    return "\n".join(_task(name, task) for name, task in tasks.items())


def _task(name: str, task: Mapping[str, Any]) -> str:
    rows = [
        f"### {name}",
        "",
        "| arm | n | right % [95 %] | parts right % | valid | ended | E/T % | changed % "
        "| passes per token | tokens/s |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, of in task["arms"].items():
        right, parts, valid = (
            Share(of[key]["right"], of[key]["of"]) for key in ("right", "parts", "valid")
        )
        passes = " + ".join(f"{each:.2f}" for each in of["passes_per_token"])
        rows.append(
            f"| {arm} | {right.of} | {right} | {100 * parts.value:.1f} | {valid.right} "
            f"| {of['ended']} | {100 * of['ensembled']:.1f} | {100 * of['changed']:.1f} "
            f"| {passes} | {of['tokens_per_second']:.1f} |"
        )
    rows += ["", "| compared | n | right, won:lost | parts, won:lost | same text |"]
    rows += ["| --- | ---: | --- | --- | ---: |"]
    for arms, of in task["paired"].items():
        told = [str(Paired(of[key]["won"], of[key]["lost"])) for key in ("right", "parts")]
        rows.append(f"| {arms} | {of['n']} | {told[0]} | {told[1]} | {of['same_text']} |")
    for arms, of in task["orders"].items():
        rows += ["", f"{arms}: {of['right']} of {of['of']} texts are the same."]
    return "\n".join(rows) + "\n"
