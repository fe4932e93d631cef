"""A file of answers, one JSON object per line, that an interrupted run can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, Final

from safe_integrations.cli.questions import Question, as_line, same
from safe_integrations.errors import InvalidArgumentError, SafeError

_BEGINNING: Final = b'{"line": '
"""How every answer begins; a last line that was not finished has some of it at least."""


class Answers:
    """Where answers are written, and what an earlier run has written there.

    Args:
        file: A file, which is made where there is none; None is stdout.
        questions: What is to be answered.

    Attributes:
        answered: Lines of the questions that have an answer without an error.

    Raises:
        InvalidArgumentError: The file cannot be written, or is not one of answers to these
            questions. It is left as it is.
    """

    def __init__(self, file: Path | None, questions: Sequence[Question]) -> None:
        self.answered: set[int] = set()
        self.file = file
        self._kept: list[bytes] | None = None  # None where every line is kept
        if file is None:
            return
        with self._errors_named():
            if file.is_file():
                self._read(file, {question.line: question for question in questions})
            if not file.is_fifo():  # whose reader would take this for the end
                file.open("ab").close()

    @contextmanager
    def open(self) -> Iterator[AnswerWriter]:
        """Writes behind the answers that are there.

        What is left of errors, and of an answer that was not finished, is dropped before.

        Raises:
            InvalidArgumentError: The file cannot be written.
        """
        with self._errors_named():
            if self.file is None:
                yield AnswerWriter(sys.stdout.buffer)
                return
            if self._kept is not None:
                _replace(Path(os.path.realpath(self.file)), self._kept)
                self._kept = None
            with self.file.open("ab") as stream:
                yield AnswerWriter(stream)

    def _read(self, file: Path, questions: Mapping[int, Question]) -> None:
        data = file.read_bytes()
        kept = []
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            if not line.endswith(b"\n") and _BEGINNING.startswith(line[: len(_BEGINNING)]):
                continue  # the last one, which was not finished
            answer = self._parsed(number, line)
            if "error" in answer:
                continue
            question = questions.get(answer["line"])
            if question is None or not same(question.asked, answer["question"]):
                what = f"line {number} answers another question than line {answer['line']} asks"
                raise self._foreign(what)
            self.answered.add(question.line)
            kept.append(line if line.endswith(b"\n") else line + b"\n")
        if b"".join(kept) != data:
            self._kept = kept

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(line)
            match answer:
                case {"line": int(), "question": str() | dict()}:
                    return answer
        except (ValueError, RecursionError):
            pass
        raise self._foreign(f"line {number} is no answer")

    def _foreign(self, what: str) -> InvalidArgumentError:
        remedy = f"it does not belong to these questions: {what}; name another file"
        return InvalidArgumentError("--output", str(self.file), remedy)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (SafeError, BrokenPipeError):  # some of ours are OSErrors, too
            raise
        except OSError as error:
            remedy = f"it cannot be written: {error.strerror or error}"
            raise InvalidArgumentError("--output", str(self.file or "-"), remedy) from None


class AnswerWriter:
    """Writes answers to a stream, each at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, answer: Mapping[str, Any]) -> None:
        """Writes an answer.

        Raises:
            OSError: The disk is full, or nobody reads any more.
        """
        self._stream.write(as_line(answer))
        self._stream.flush()


def _replace(file: Path, lines: Sequence[bytes]) -> None:
    """Gives a file other lines, all or none."""
    with NamedTemporaryFile(prefix=file.name, dir=file.parent, delete=False) as beside:
        try:
            beside.writelines(lines)
            beside.close()
            shutil.copymode(file, beside.name)
            os.replace(beside.name, file)
        except OSError:
            os.unlink(beside.name)
            raise
