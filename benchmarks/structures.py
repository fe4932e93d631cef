"""How much of real JSON schemas is enforced: all of MaskBench, into docs/structures.md.

    python -m benchmarks.structures maskbench/data

MaskBench is a folder of github.com/guidance-ai/jsonschemabench (arXiv 2501.10868), a file a schema.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, Final

from llguidance import LLMatcher

from benchmarks.walks import Walks
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.structure.checking import complaint
from safe_integrations.structure.schemas import split

_STEPS: Final = (20, 100)
_PAGE: Final = Path(__file__).parent.parent / "docs" / "structures.md"


def measure(files: Sequence[Path]) -> tuple[Counter[str], list[float], Counter[str]]:
    """Splits every schema, and walks its grammar.

    Returns:
        How often what happened; seconds that each split took; how often a keyword is checked.
    """
    found, seconds, keywords = Counter[str](), list[float](), Counter[str]()
    for file in files:
        schema = json.loads(file.read_text("utf-8"))["schema"]
        found["llguidance alone"] += _accepts(schema, {})
        found["llguidance alone, lenient"] += _accepts(
            schema, {"lenient": True, "coerce_one_of": True}
        )
        start = perf_counter()
        try:
            made = split(schema, "schema")
        except InvalidArgumentError:
            found["refused"] += 1
            continue
        except Exception as error:  # the number that has to be 0
            print(f"{file.name}: {error!r}", file=sys.stderr)
            found["crashes"] += 1
            continue
        finally:
            seconds.append(perf_counter() - start)
        found["by default"] += 1
        found["strict"] += not made.checked
        keywords.update({keyword for _, keyword in made.checked})
        for outcome in _walk(file.name, schema, made.enforced, bool(made.checked)):
            found[outcome] += 1
    return found, seconds, keywords


def _accepts(schema: Any, options: dict[str, Any]) -> bool:
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)
    return not LLMatcher.validate_grammar(grammar)


def _walk(name: str, schema: Any, enforced: str, checked: bool) -> list[str]:
    """What became of random instances: where all is enforced, by the schema as it was given."""
    kind = "checked" if checked else "strict"
    rule, outcomes = json.loads(enforced) if checked else schema, []
    walks = Walks(f"%json {enforced}")
    for steps in _STEPS:
        text = walks.instance(steps, Random(f"{name} {steps}"))
        problem = None if text is None else complaint(rule, json.loads(text))
        if problem is not None:
            print(f"{name}: {problem}: {text!r:.200}", file=sys.stderr)
        outcomes.append(f"{kind} {'open' if text is None else 'invalid' if problem else 'valid'}")
    return outcomes


def page(count: int, found: Counter[str], seconds: list[float], keywords: Counter[str]) -> str:
    """The measurement as a page of the documentation."""

    def row(name: str, key: str) -> str:
        return f"| {name} | {found[key]:,} | {found[key] / count:.1%} |"

    def walks(kind: str) -> str:
        numbers = [found[f"{kind} {outcome}"] for outcome in ("valid", "open", "invalid")]
        return f"| {kind} | " + " | ".join(f"{number:,}" for number in numbers) + " |"

    ordered = sorted(seconds)
    rows = "\n".join(
        f"| `{keyword}` | {number:,} |" for keyword, number in keywords.most_common(12)
    )
    return f"""# Real schemas

The {count:,} schemas of MaskBench ([arXiv 2501.10868](https://arxiv.org/abs/2501.10868)), measured
on {date.today()} with `make structures MASKBENCH=<folder>`.

| schemas | number | share |
| --- | ---: | ---: |
{row("accepted by default", "by default")}
{row("accepted with `strict=True`: the grammar enforces all of it", "strict")}
{row("refused", "refused")}
{row("crashes", "crashes")}
{row("llguidance alone accepts", "llguidance alone")}
{row("llguidance alone accepts with `lenient` and `coerce_one_of`", "llguidance alone, lenient")}

What llguidance drops when it is lenient is said in a warning and checked by nobody.

Random instances, {len(_STEPS)} a schema: {" and ".join(map(str, _STEPS))} random bytes, then a way
to the end. *strict*: validated by the schema as it was given; *checked*: by the part that is
enforced. *open*: the walk of this script found no end.

| schemas | valid | open | invalid |
| --- | ---: | ---: | ---: |
{walks("strict")}
{walks("checked")}

Splitting and compiling takes {1000 * median(ordered):.1f} ms in the median,
{1000 * ordered[int(0.99 * len(ordered))]:.0f} ms at 99 %, {ordered[-1]:.1f} s at most, once per
process; other threads go on meanwhile.

What is only checked, in how many schemas:

| keyword | schemas |
| --- | ---: |
{rows}
"""


def main() -> None:
    """Measures all files of a folder and writes the page."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.structures FOLDER")
    files = sorted(Path(sys.argv[1]).glob("*.json"))
    _PAGE.write_text(page(len(files), *measure(files)), "utf-8")


if __name__ == "__main__":
    main()
