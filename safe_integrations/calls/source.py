"""An answer that is still being written, as its readers take it.

The readers are generators: they pause where they need more text, until the answer has ended. So it
does not matter how a text is cut into pieces, and each piece is looked at once.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Final

from safe_integrations.calls.form import SLOTS

SPACE: Final = " \t\r\n"

_PARTS: Final = re.compile(rf"({'|'.join(map(re.escape, SLOTS))})|\s+")
_LONGEST: Final = 256
"""Most characters of a name."""


class BrokenCallError(ValueError):
    """Something else stands there than what the form of a call wants."""


class CutOffError(ValueError):
    """The answer ended inside a call."""

    def __init__(self) -> None:
        super().__init__("the call is incomplete")


class Source:
    """Text that grows at its end and is taken from its beginning.

    Attributes:
        rest: What is not taken yet.
        ended: Whether nothing more will come.
        taken: What was taken, in pieces, since somebody emptied it.
    """

    def __init__(self) -> None:
        self.rest = ""
        self.ended = False
        self.taken: list[str] = []

    def pop(self, length: int) -> str:
        """Takes some characters."""
        text, self.rest = self.rest[:length], self.rest[length:]
        self.taken.append(text)
        return text

    def skip(self, characters: str = SPACE) -> Iterator[None]:
        """Takes characters of some kind, up to the first other one."""
        while True:
            self.pop(len(self.rest) - len(self.rest.lstrip(characters)))
            if self.rest or self.ended:
                return
            yield

    def begins(self, *texts: str) -> Generator[None, None, str]:
        """Which text comes next; empty where none does."""
        while True:
            longer = [t for t in texts if t.startswith(self.rest) and len(t) > len(self.rest)]
            if self.ended or not longer:
                return max((t for t in texts if self.rest.startswith(t)), key=len, default="")
            yield

    def expect(self, literal: str) -> Generator[None, None, list[str]]:
        """Takes a text of a form, and what its slots hold. White space is free in it and before.

        Raises:
            BrokenCallError: Something else comes.
            CutOffError: The answer ends before.
        """
        slots = []
        for part in filter(None, _PARTS.split(literal)):
            if part in SLOTS:
                slots.append((yield from self.word(SLOTS[part])))
            else:
                yield from self.skip()
                if not (yield from self.begins(part)):
                    if self.ended and part.startswith(self.rest):
                        raise CutOffError
                    raise BrokenCallError(f"{part} is missing")
                self.pop(len(part))
        return slots

    def expect_or_leave(self, literal: str) -> Iterator[None]:
        """Takes as much of a text as is there; what was cut off in it at the end as well."""
        for part in filter(None, _PARTS.split(literal)):
            yield from self.skip()
            if not (yield from self.begins(part)):
                if part.startswith(self.rest):
                    self.pop(len(self.rest))
                return
            self.pop(len(part))

    def word(self, pattern: str) -> Generator[None, None, str]:
        """Takes what matches a pattern, up to the first character that does not belong to it.

        Raises:
            BrokenCallError: Nothing does, or it does not end.
            CutOffError: The answer ends before.
        """
        while True:
            found = re.match(pattern, self.rest)
            end = found.end() if found else 0
            if end < len(self.rest) or self.ended or end > _LONGEST:
                break
            yield
        if self.ended and end == len(self.rest):
            raise CutOffError
        if not 0 < end <= _LONGEST:
            raise BrokenCallError("a name is missing")
        return self.pop(end)

    def find(self, *tags: str) -> tuple[int, str]:
        """Where the first of some tags begins, and which it is.

        Returns:
            Where none is there, how much of the rest cannot belong to one, and nothing.
        """
        found = re.search("|".join(map(re.escape, tags)), self.rest) if tags else None
        if found:
            return found.start(), found[0]
        longest = 0 if self.ended else max(map(len, tags), default=1) - 1
        for end in range(max(0, len(self.rest) - longest), len(self.rest)):
            if any(tag.startswith(self.rest[end:]) for tag in tags):
                return end, ""
        return len(self.rest), ""

    def until(self, *tags: str) -> Generator[None, None, str]:
        """Takes everything before the first of some tags, which then comes next.

        Raises:
            CutOffError: The answer ends before; all of it is taken then.
        """
        parts = []
        while True:
            end, tag = self.find(*tags)
            parts.append(self.pop(end))
            if tag:
                return "".join(parts)
            if self.ended:
                raise CutOffError
            yield
