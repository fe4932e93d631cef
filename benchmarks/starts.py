"""What a process takes from its start to its first text, and the memory that it holds then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psutil

from benchmarks.benchmark import Spread, Tell, plain
from benchmarks.measure import Clock
from benchmarks.prompts import PROMPTS
from safe_integrations.models.spec import ModelSpec

ANSWER: Final = 60
"""Tokens of the answer after which memory is measured."""

_REPOSITORY: Final = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Start:
    """One process that answered one question.

    Attributes:
        seconds: From its start to its first text.
        resident: Memory that it holds after its answer, in bytes.
        caches: Of these, what it keeps of the prompts.
        tokens: Length of its answer.
        loaded: Of torch and transformers, what it has imported.
    """

    seconds: float
    resident: int
    caches: int
    tokens: int
    loaded: Sequence[str]


@dataclass(frozen=True, slots=True)
class Starts:
    """All of them.

    Attributes:
        files: Size of each model's file, in bytes.
        kinds: Kind of start -> what each repetition gave.
    """

    files: Mapping[str, int]
    kinds: dict[str, list[Start]] = field(default_factory=dict)

    def over(self, kind: str, name: str, unit: int = 1) -> Spread:
        """The spread of a number of each start; `rest` is memory beyond files and caches."""
        return Spread.of([self._number(start, name) / unit for start in self.kinds[kind]])

    def _number(self, start: Start, name: str) -> float:
        if name == "rest":
            return start.resident - start.caches - sum(self.files.values())
        return float(getattr(start, name))

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON-safe data."""
        return {
            "files": dict(self.files),
            "kinds": {
                kind: {
                    "seconds": plain(self.over(kind, "seconds")),
                    "resident": plain(self.over(kind, "resident")),
                    "beyond_files_and_caches": plain(self.over(kind, "rest")),
                    "starts": [asdict(start) for start in starts],
                }
                for kind, starts in self.kinds.items()
            },
        }


def measure_starts(
    specs: Mapping[str, Sequence[ModelSpec]],
    files: Mapping[str, int],
    repetitions: int,
    tell: Tell = lambda _: None,
) -> Starts:
    """Starts processes one after the other: with an empty cache, again with the same, and others.

    Args:
        specs: Backend -> models, drafter first. `llama.cpp` is started with a cache of its own,
            where files that wheels hold in parts are put together first.
        files: Size of each model's file.
        repetitions: How often everything is measured.
        tell: Told what is going on.
    """
    found = Starts(files)
    for nth in range(1, repetitions + 1):
        for backend, models in specs.items():
            if backend != "llama.cpp":
                tell(f"{nth}: start with {backend}")
                found.kinds.setdefault(backend, []).append(start(models))
                continue
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("first", "again"):
                    tell(f"{nth}: start with {backend}, {kind}")
                    found.kinds.setdefault(kind, []).append(start(models, cache))
    return found


def start(
    specs: Sequence[ModelSpec], cache: str | None = None, clock: Clock = perf_counter
) -> Start:
    """Has a new process answer.

    Args:
        specs: The models, drafter first.
        cache: Its folder for files that are made once; None for the user's own.
        clock: Seconds, from anywhere.

    Raises:
        RuntimeError: It did not answer; stderr tells why.
    """
    asked = {
        "specs": [spec.model_dump(mode="json") for spec in specs],
        "question": PROMPTS["chat"][0].content,
        "max_tokens": ANSWER,
    }
    own = {} if cache is None else {"SAFE_INTEGRATIONS_CACHE": cache}
    started = clock()
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.first_answer", json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_REPOSITORY,
        env=os.environ | own,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = clock() - started
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("a process that was to answer has ended")
        resident = int(psutil.Process(process.pid).memory_info().rss)
    return Start(seconds, resident, **json.loads(line))
