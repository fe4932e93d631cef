"""Word problems of GSM8K (arXiv 2110.14168): the last number of an answer is what counts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message

_NUMBER: Final = re.compile(r"-?\d(?:[\d,]*\d)?(?:\.\d+)?")
_EXAMPLES: Final = (  # of our own: the data stays where it is
    (
        "A bus has 40 seats. 12 of them are broken and 15 are taken. How many seats are free?",
        "12 + 15 = 27 seats cannot be used. 40 - 27 = 13 seats are free. The answer is 13.",
    ),
    (
        "Lea buys 3 notebooks for 4 dollars each and a pen for 2 dollars. What does she pay?",
        "The notebooks cost 3 * 4 = 12 dollars. She pays 12 + 2 = 14 dollars. The answer is 14.",
    ),
)


@dataclass(frozen=True, slots=True)
class WordProblem:
    """One question.

    Attributes:
        name: Unique among all problems of a file.
        question: What is asked.
        right: The number to find.
    """

    name: str
    question: str
    right: Decimal

    def messages(self) -> list[Message]:
        """The conversation: two worked examples, then the question."""
        said = []
        for question, answer in _EXAMPLES:
            said += [Message("user", question), Message("assistant", answer)]
        return [*said, Message("user", self.question)]

    def score(self, answer: str) -> bool:
        """Whether the last number of an answer is the right one."""
        return last_number(answer) == self.right


def last_number(text: str) -> Decimal | None:
    """The last number in a text, its thousands separators aside; None where there is none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def word_problems(file: Path) -> list[WordProblem]:
    """Reads a JSONL file: objects with `question`, and `answer` that ends in `#### NUMBER`.

    Raises:
        InvalidArgumentError: It cannot be read, or a line is something else.
    """
    problems = []
    try:
        for number, line in enumerate(file.read_text("utf-8").splitlines()):
            told = json.loads(line)
            right = last_number(told["answer"].rpartition("####")[2])
            if right is None:
                raise ValueError(f"line {number + 1} has no number behind ####")
            problems.append(WordProblem(f"gsm8k-{number}", told["question"], right))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidArgumentError("--gsm8k", str(file), f"{error!r}") from None
    return problems
