"""From bytes to text that can be shown: whole characters only, and never part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns committed bytes into deltas of valid text.

    The outcome does not depend on how the bytes are cut: pushing them one by one or all at once
    gives the same text. A stop string counts where it is first completed; of two completed by the
    same byte the longer is cut.

    Args:
        stop: Texts that end the stream; none of them is ever part of the output.

    Attributes:
        read: Bytes pushed so far.
        shown: Bytes released so far.
        stopped_at: Bytes read when a stop string was complete; None while none was.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stops = sorted((s.encode() for s in stop), key=len, reverse=True)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""
        self.read = 0
        self.shown = 0
        self.stopped_at: int | None = None

    def push(self, data: bytes) -> str:
        """Adds bytes; returns the text that can be shown now (often some, sometimes none)."""
        self.read += len(data)
        if self.stopped_at is not None:
            return ""
        self._held += data
        found = [(at + len(s), -len(s)) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            end, minus_length = min(found)
            self.stopped_at = self.shown + end
            return self._release(end + minus_length)
        return self._release(len(self._held) - self._possible_stop())

    def finish(self) -> str:
        """The rest, at the end of the text. Half a character at the very end is dropped."""
        return "" if self.stopped_at is not None else self._release(len(self._held))

    def _release(self, count: int) -> str:
        data, self._held = self._held[:count], self._held[count:]
        self.shown += count
        return self._decoder.decode(data)

    def _possible_stop(self) -> int:
        """Length of the longest suffix held that may become a stop string."""
        longest = max((len(s) - 1 for s in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            suffix = self._held[-length:]
            if any(s.startswith(suffix) for s in self._stops):
                return length
        return 0
