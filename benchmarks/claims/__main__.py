"""`python -m benchmarks.claims`: what `make claims` runs."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Final

import torch
import typer

from benchmarks.claims.arms import ARMS, Arm, answers
from benchmarks.claims.members import member
from benchmarks.claims.problems import FACTS, problems
from benchmarks.claims.recipes import RECIPES, known_facts
from benchmarks.claims.report import Outcome, Report
from benchmarks.machine import machine
from safe_integrations.engine.model import Member
from safe_integrations.models.load import load_member

_BUILD: Final = Path("build/claims")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def claims(
    *,
    seeds: Annotated[
        list[int], typer.Option(help="Sets of seeds: members and problems of their own.")
    ] = [1],  # noqa: B006 - Typer copies it
    problems_: Annotated[int, typer.Option("--problems", help="Held-out ones.", min=1)] = 300,
    only: Annotated[
        list[str], typer.Option(help="Members of the arms to run, drafter first; repeatable.")
    ] = [],  # noqa: B006
    folder: Annotated[Path, typer.Option(help="For members and answers.")] = _BUILD,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take answers that an earlier run has kept.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything counted to this file.")
    ] = None,
) -> None:
    """Train tiny members where they are not there yet, and let them answer together."""
    torch.set_num_threads(1)  # for matrices this small more threads only wait
    alone = set("".join(only))
    chosen = [arm for arm in ARMS if not only or arm.members in only or arm.members in alone]
    reports = [_report(seed, chosen, problems_, folder, resume) for seed in seeds]
    described = machine()
    for report in reports:
        print(f"## Seeds {report.seeds}, {problems_} problems\n\n{report.markdown()}")
        for claim, holds in report.claims().items() if not only else ():
            print(f"* {'holds' if holds else '**does not hold**'}: {claim}")
    print("\n" + json.dumps(described))
    if json_file is not None:
        document = {
            "version": 1,
            "machine": described,
            "sets": [report.to_dict() for report in reports],
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if not only and not all(holds for report in reports for holds in report.claims().values()):
        raise typer.Exit(1)


def _report(seeds: int, arms: list[Arm], count: int, folder: Path, resume: bool) -> Report:
    members: dict[str, Member] = {}
    for name in sorted({name for arm in arms for name in arm.members}):
        loaded = member(name, seeds, folder, _tell)
        members[name] = load_member(loaded)
        known = len(known_facts(name, seeds))
        _tell(f"{name}: {len(loaded.tokenizer)} tokens, {known} of {len(FACTS)} facts")
    outcomes: dict[Arm, Outcome] = {}
    for arm in arms:
        totals = RECIPES[arm.members[0]].totals
        drawn = problems(Random(f"tests {seeds}"), totals, held_out=True)
        asked = list(islice(drawn, count))
        file = folder / "answers" / f"{seeds}-{arm.members}-{arm.way}.json"
        made = answers(arm, members, asked, file, _tell, resume=resume)
        outcomes[arm] = Outcome.of(arm, asked, made)
    return Report(seeds, outcomes)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.claims")
