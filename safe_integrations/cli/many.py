"""Answers to many questions, several of them at the same time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from safe_integrations.cli.answers import Answers
from safe_integrations.cli.options import JOBS, check
from safe_integrations.cli.questions import Question, read_questions
from safe_integrations.cli.render import bar
from safe_integrations.config import GenerationConfig
from safe_integrations.errors import GenerationCancelled, SafeError
from safe_integrations.report.result import Result
from safe_integrations.report.terminal import err
from safe_integrations.safe_engine import SafeEngine

T = TypeVar("T")

_GLANCE: Final = 0.2
"""Seconds between two looks at whether to stop: not every system lets Ctrl-C end a wait."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How every question is asked.

    Attributes:
        options: How its answer is made.
        system: The system message of conversations that do not begin with one.
        whole: Whether to write everything that is known of an answer, as `--json` does of one.
    """

    options: GenerationConfig
    system: str | None = None
    whole: bool = False

    def answer(
        self, engine: SafeEngine, question: Question, cancel: Callable[[], bool]
    ) -> dict[str, Any]:
        """Answers one question. What goes wrong with it is told in `error`.

        Raises:
            GenerationCancelled: `cancel` has said yes.
        """
        told: dict[str, Any] = {"line": question.line, "question": question.asked}
        told |= dict.fromkeys(("text", "finish_reason", "tokens", "seconds"))
        try:
            messages = question.messages(self.system)
            with closing(engine.generate(messages, self.options, cancel=cancel)) as events:
                result = Result.of(events)
            told |= self._told(result)
            check(result, self.options)
        except GenerationCancelled:
            raise
        except Exception as error:  # whatever it is, the other questions have nothing to do with it
            told["error"] = {"type": type(error).__name__, "message": str(error)}
        return told

    def _told(self, result: Result) -> dict[str, Any]:
        statistics = result.statistics
        told: dict[str, Any] = {
            "text": result.text,
            "finish_reason": result.finish_reason,
            "tokens": statistics.tokens,
            "seconds": round(statistics.seconds, 3),
        }
        if result.reasoning:
            told["reasoning"] = result.reasoning
        if statistics.closed_at is not None:
            told["cut"] = statistics.cut
        if statistics.lost:
            told["lost"] = statistics.lost
        return told | (result.to_dict() if self.whole else {})


class _Tally:
    """What has become of the questions so far."""

    def __init__(self) -> None:
        self.answered = self.failed = self.tokens = 0
        self.first_error = ""
        self._begun = time.monotonic()

    def count(self, answer: dict[str, Any]) -> None:
        self.tokens += answer["tokens"] or 0
        error = answer.get("error")
        if error is None:
            self.answered += 1
            return
        self.failed += 1
        if self.failed == 1:
            self.first_error = f"line {answer['line']}, {error['type']}: {error['message']}"

    def __str__(self) -> str:
        seconds = time.monotonic() - self._begun
        rate = self.tokens / seconds if seconds else 0
        counts = f"{self.answered} answered, {self.failed} failed"
        return f"{counts}, {self.tokens} tokens in {seconds:.1f} s ({rate:.1f} tokens/s)"


def answer_all(
    file: Path,
    output: Path | None,
    jobs: int | None,
    load: Callable[[], SafeEngine],
    asking: Asking,
    quiet: bool,
) -> None:
    """Answers the questions of a file that have no answer yet.

    Answers are written as they are completed. Ctrl-C stops those that are not, and keeps the rest.

    Args:
        file: The questions (`read_questions`).
        output: Where to write, and what to go on with; None is stdout.
        jobs: Answers at the same time, at most.
        load: Makes the engine. Not called before everything else is found to be right.
        asking: How they are asked.
        quiet: Whether to show nothing on stderr.

    Raises:
        InvalidArgumentError: A file or an option cannot be used.
        SafeError: Some questions have no answer, which the lines about them explain.
    """
    questions = read_questions(file)
    answers = Answers(output, questions)
    todo = [question for question in questions if question.line not in answers.answered]
    show: Callable[[object], None] = _nothing if quiet else _line
    if len(todo) < len(questions):
        show(f"{len(questions) - len(todo)} of {len(questions)} are answered in {output} already")
    if not todo:
        return
    engine = load()
    # what is wrong with the options is wrong with them for every question
    engine.generate(Question(0, "?").messages(asking.system), asking.options).close()
    tally, one_at_a_time = _Tally(), threading.Lock()
    shown = not quiet and (output is not None or not sys.stdout.isatty())
    try:
        with answers.open() as writer, bar(len(questions), len(answers.answered), shown) as move:

            def work(question: Question, stopped: Callable[[], bool]) -> None:
                try:
                    answer = asking.answer(engine, question, stopped)
                except GenerationCancelled:
                    return
                with one_at_a_time:  # not in the main thread, where Ctrl-C could come in between
                    writer.write(answer)
                    tally.count(answer)
                    move(tally.failed)

            in_threads(work, todo, min(jobs or JOBS, len(todo)))
    except KeyboardInterrupt:
        show(f"{tally}" if output is None else f"{tally}; the same command answers the rest")
        raise
    show(tally)
    if tally.failed:
        raise SafeError(
            f"{tally.failed} of {len(todo)} questions failed; the first, {tally.first_error}"
        )


def in_threads(
    work: Callable[[T, Callable[[], bool]], None], items: Iterable[T], threads: int
) -> None:
    """Does some work on each item, in threads.

    Args:
        work: Also gets a function that says whether to stop.
        items: Taken one by one, in order.
        threads: How many of them at the same time.

    Raises:
        BaseException: What work raised first, or KeyboardInterrupt here. Then the others have been
            told to stop, and have ended.
    """
    stop, lock, rest = threading.Event(), threading.Lock(), iter(items)

    def loop() -> None:
        while not stop.is_set():
            with lock:
                item = next(rest, stop)
            if isinstance(item, threading.Event):
                return
            work(item, stop.is_set)

    with ThreadPoolExecutor(threads, "safe-answer") as pool:
        try:
            running: set[Future[None]] = {pool.submit(loop) for _ in range(threads)}
            while running:
                done, running = wait(running, _GLANCE, FIRST_EXCEPTION)
                for future in done:
                    future.result()
        finally:
            stop.set()


def _line(message: object) -> None:
    err().print(str(message), style="dim", soft_wrap=True)


def _nothing(message: object) -> None: ...
