"""How much of real JSON schemas is enforced: all of MaskBench, into docs/structures.md.

    python -m benchmarks.structures maskbench/data

MaskBench is a folder of github.com/guidance-ai/jsonschemabench (arXiv 2501.10868), a file a schema.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from pathlib import Path
from random import Random
from statistics import median
from time import process_time
from typing import Any, Final

from llguidance import LLMatcher

from benchmarks.walks import Walks
from safe_integrations.errors import GenerationError, InvalidArgumentError
from safe_integrations.structure.checking import complaint
from safe_integrations.structure.schemas import split

_STEPS: Final = (0, 20, 100)
_PAGE: Final = Path(__file__).parent.parent / "docs" / "structures.md"


@dataclass
class Record:
    """What became of one schema.

    Attributes:
        name: Of its file.
        alone: Whether llguidance accepts it as it is.
        lenient: Whether llguidance accepts it when it may drop what it does not know.
        seconds: What splitting and compiling took.
        fate: strict, checked, endless (no end of an answer is known), refused or crashed.
        keywords: What is only checked.
        walks: What became of random instances: valid, open or invalid.
        closing: Seconds that each search for a way to the end took.
    """

    name: str
    alone: bool
    lenient: bool
    seconds: float = 0.0
    fate: str = "refused"
    keywords: set[str] = field(default_factory=set)
    walks: list[str] = field(default_factory=list)
    closing: list[float] = field(default_factory=list)


def examine(file: Path) -> Record:
    """Splits one schema, and walks its grammar."""
    text = file.read_text("utf-8")
    schema = json.loads(text)["schema"]
    dropping = {"lenient": True, "coerce_one_of": True}
    record = Record(file.name, _accepts(schema, {}), _accepts(schema, dropping))
    start = process_time()
    try:
        made = split(schema, "schema")
    except InvalidArgumentError as error:
        _tell(file, error.remedy)
        return record
    except Exception as error:  # the number that has to be 0
        _tell(file, repr(error))
        record.fate = "crashed"
        return record
    finally:
        record.seconds = process_time() - start
    record.fate = "checked" if made.checked else "strict"
    record.keywords = {keyword for _, keyword in made.checked}
    # where all is enforced, it is the schema as it was given that rules
    rule = _exactly(made.enforced) if made.checked else _exactly(text)["schema"]
    walks = Walks(f"%json {made.enforced}")
    for steps in _STEPS:
        try:
            answer = walks.instance(steps, Random(f"{file.name} {steps}"))
        except GenerationError as error:
            answer = None
            _tell(file, str(error))
        problem = None if answer is None else _problem(rule, answer)
        if problem is not None:
            _tell(file, f"{problem}: {answer!r:.200}")
        record.walks.append("open" if answer is None else "invalid" if problem else "valid")
    record.closing = walks.seconds
    if record.fate == "strict" and record.walks[0] == "open":
        record.fate = "endless"
    return record


def _exactly(text: str | bytes) -> Any:
    """JSON with its numbers as they stand: as a double, 1e308 is not 10 to the power of 308."""

    def number(digits: str) -> int | float | Fraction:
        exponent = digits.lower().partition("e")[2].lstrip("+-0")
        if len(exponent) > 3:
            return float(digits)
        value = Fraction(digits)
        return int(value) if value.denominator == 1 else value

    return json.loads(text, parse_float=number)


def _problem(rule: Any, text: bytes) -> str | None:
    try:
        return complaint(rule, _exactly(text))
    except ValueError as error:
        return f"no JSON: {error}"


def _accepts(schema: Any, options: dict[str, Any]) -> bool:
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)
    return not LLMatcher.validate_grammar(grammar)


def _tell(file: Path, problem: str) -> None:
    print(f"{file.name}: {problem}", file=sys.stderr)


def page(records: Sequence[Record]) -> str:
    """The measurement as a page of the documentation."""
    fates = Counter(record.fate for record in records)
    keywords = Counter(keyword for record in records for keyword in record.keywords)

    def row(name: str, number: int) -> str:
        return f"| {name} | {number:,} | {number / len(records):.1%} |"

    def walks(fate: str) -> str:
        found = Counter(w for record in records if record.fate == fate for w in record.walks)
        return f"| {fate} | " + " | ".join(f"{found[w]:,}" for w in ("valid", "open", "invalid"))

    rows = "\n".join(
        f"| `{keyword}` | {number:,} |" for keyword, number in keywords.most_common(12)
    )
    return f"""# Real schemas

The {len(records):,} schemas of MaskBench ([arXiv 2501.10868](https://arxiv.org/abs/2501.10868)),
measured on {date.today()} with {os.cpu_count()} cores, by `make structures MASKBENCH=<folder>`.

| schemas | number | share |
| --- | ---: | ---: |
{row("accepted by default", sum(fates[fate] for fate in ("strict", "checked", "endless")))}
{row("accepted with `strict=True`: the grammar enforces all of it", fates["strict"])}
{row("refused: no answer could be valid, or a reference leads nowhere", fates["refused"])}
{row("crashes", fates["crashed"])}
{row("llguidance alone accepts", sum(record.alone for record in records))}
{row("the same with `lenient` and `coerce_one_of`", sum(record.lenient for record in records))}

What llguidance drops when it is lenient is said in a warning and checked by nobody.

Random answers, {len(_STEPS)} a schema: {", ".join(map(str, _STEPS))} random bytes, then the way
to the end that is taken where `max_tokens` leaves no more room. *strict*: validated by the schema
as it was given; *checked*: by the part that is enforced. *open*: no way to the end was found.

| schemas | valid | open | invalid |
| --- | ---: | ---: | ---: |
{walks("strict")} |
{walks("checked")} |

jsonschema checks, with exact numbers: by floats, 618234.2 is no multiple of 0.01. `strict=True`
also refuses schemas ({fates["endless"]}) for which no answer of at most 16,384 bytes was found.

| processor time, once per process and schema | median | 99 % | most |
| --- | ---: | ---: | ---: |
{_times("splitting and compiling", [record.seconds for record in records])}
{_times("a way to the end", [second for record in records for second in record.closing])}

Other threads go on meanwhile.

What is only checked, in how many schemas:

| keyword | schemas |
| --- | ---: |
{rows}
"""


def _times(name: str, seconds: list[float]) -> str:
    ordered = [1000 * second for second in sorted(seconds)]
    found = median(ordered), ordered[int(0.99 * len(ordered))], ordered[-1]
    return f"| {name} | " + " | ".join(f"{ms:,.1f} ms" for ms in found) + " |"


def main() -> None:
    """Measures all files of a folder and writes the page."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.structures FOLDER")
    warnings.simplefilter("ignore", FutureWarning)  # of Python's, about patterns
    files = sorted(Path(sys.argv[1]).glob("*.json"))
    _PAGE.write_text(page([examine(file) for file in files]), "utf-8")


if __name__ == "__main__":
    main()
