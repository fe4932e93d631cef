"""`python -m benchmarks.accuracy`: what `make accuracy` runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from benchmarks.accuracy import report
from benchmarks.accuracy.extraction import Extraction, extraction
from benchmarks.accuracy.gsm8k import WordProblem, word_problems
from benchmarks.accuracy.orders import compare_orders
from benchmarks.accuracy.orders import markdown as markdown_of_orders
from benchmarks.accuracy.running import ARMS, Tell, answer_all, asked, read
from benchmarks.machine import machine
from safe_integrations.cli import options as o
from safe_integrations.cli.app import readable_errors
from safe_integrations.cli.render import progress
from safe_integrations.config import GenerationConfig, JsonSchema
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.models.load import load_member
from tests.prompts import PROMPTS

if TYPE_CHECKING:
    from safe_integrations.engine.model import Member

_EXTRACTIONS: Final = 100
_TOKENS: Final = {"extraction": 96, "gsm8k": 200}
_STOP: Final = ("\nUser:", "\nAssistant:")  # base models go on with the conversation
_ORDER_TOKENS: Final = 64

Problem = Extraction | WordProblem


class Arm(StrEnum):
    """A name of `running.ARMS`."""

    DRAFTER = "drafter"
    VERIFIER = "verifier"
    TOKEN = "token"
    TEXT = "text"
    TEXT_SWAPPED = "text-swapped"
    TOKEN_SWAPPED = "token-swapped"


_USUAL: Final[list[Arm]] = [arm for arm in Arm if arm is not Arm.TOKEN_SWAPPED]

Arms = Annotated[list[Arm], typer.Option("--arm", help="Ways to answer; repeatable.")]
Gsm8k = Annotated[
    Path | None, typer.Option(help="A JSONL file of GSM8K: answer its questions, too.")
]
Limit = Annotated[int | None, typer.Option(help="Problems of each task, at most.", min=1)]
Seconds = Annotated[
    float | None,
    typer.Option(help="Begin no answer later than this; call again to go on. 0 only reports."),
]
Orders = Annotated[
    bool, typer.Option("--orders", help="Answer 40 prompts both ways round, and compare.")
]
Folder = Annotated[Path, typer.Option(help="Where answers, tables and figures are kept.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@readable_errors()
def accuracy(
    *,
    arm: Arms = _USUAL,
    gsm8k: Gsm8k = None,
    limit: Limit = None,
    seconds: Seconds = None,
    orders: Orders = False,
    folder: Folder = Path("build/accuracy"),
    drafter: o.Drafter = None,
    verifier: o.Verifiers = None,
    dtype: o.Dtype = "float32",
    device: o.Device = None,
    quiet: o.Quiet = False,
) -> None:
    """How often a pair answers rightly, judged by tokens, by units of text, and each model alone.

    Greedy. Answers are kept in the folder as they are written, so that a run can be stopped.
    """
    specs = o.specs_of(drafter, verifier, dtype, device)
    if len(specs) != 2:
        raise InvalidArgumentError("--verifier", verifier, "name one model to measure with")
    with progress(quiet) as tell:

        def members() -> list[Member]:
            return [load_member(spec, tell) for spec in specs]

        if orders:
            file = folder / "orders.jsonl"
            found = compare_orders(PROMPTS, _ORDER_TOKENS, members, file, seconds, tell)
            typer.echo(markdown_of_orders(found))
            return
        problems: dict[str, Sequence[Problem]] = {
            "extraction": [extraction(n) for n in range(_EXTRACTIONS)][:limit]
        }
        if gsm8k is not None:
            problems["gsm8k"] = word_problems(gsm8k)[:limit]
        arms = [str(each) for each in dict.fromkeys(arm)]
        tasks = _answered(problems, arms, members, folder / "answers.jsonl", seconds, tell)
    document = {"version": 1, "machine": machine(), "tasks": tasks}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(report.markdown(tasks), encoding="utf-8")
    typer.echo(report.markdown(tasks))


def options_for(problem: Problem) -> GenerationConfig:
    """How a problem is answered."""
    if isinstance(problem, Extraction):
        wanted = JsonSchema(schema=problem.schema)
        return GenerationConfig(
            max_tokens=_TOKENS["extraction"], response_format=wanted, on_length="close"
        )
    return GenerationConfig(max_tokens=_TOKENS["gsm8k"], stop=_STOP)


def _answered(
    problems: dict[str, Sequence[Problem]],
    arms: Sequence[str],
    members: Callable[[], Sequence[Member]],
    file: Path,
    seconds: float | None,
    tell: Tell,
) -> dict[str, Any]:
    """Writes what is missing, and sums up what is there, task by task."""
    every = [(problem, options_for(problem)) for task in problems.values() for problem in task]
    left = answer_all(every, arms, members, file, seconds, tell)
    if left:
        typer.echo(f"{left} answers are still missing.\n", err=True)
    kept = {(answer.problem, answer.asked, answer.arm): answer for answer in read(file)}
    tasks = {}
    for name, task in problems.items():
        keys = [(problem, asked(problem, options_for(problem))) for problem in task]
        tasks[name] = report.summary(
            {
                arm: {
                    problem.name: report.scored(problem, kept[problem.name, key, arm])
                    for problem, key in keys
                    if (problem.name, key, arm) in kept
                }
                for arm in ARMS
            }
        )
    return tasks


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.accuracy")
