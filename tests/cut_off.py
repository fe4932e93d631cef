"""A call that is cut at every place, for the tests of both adapters."""

from __future__ import annotations

from collections.abc import Mapping

from safe_integrations.engine.tokens import END
from safe_integrations.testing import Script, ScriptedMember

PATH = "/home/me/project/tmp"
CALL = f'<tool_call>\n{{"name": "delete", "arguments": {{"path": "{PATH}"}}}}\n</tool_call>'
WHOLE = len(CALL) - len("\n</tool_call>")
"""Characters up to which something of the call is missing."""

LENGTHS = range(1, len(CALL) + 2)
"""Every budget in tokens, one per character; the last one leaves room for the end."""

STOPS = sorted({CALL[i : i + n] for i in range(len(CALL)) for n in (1, 4)})
"""Stop strings that cut the call at every place."""


SMALLEST = len(CALL) - len(f'"path": "{PATH}"') + 1
"""The budget that a forced call needs at least: without a path, but with its end."""


def doubtful(script: Script) -> Script:
    """The same script with a little probability for every byte, as real models have it."""
    rest = {bytes([b]): 1e-5 for b in range(32, 127)} | {END: 1e-5}

    def doubts(written: bytes) -> Mapping[bytes, float]:
        return rest | dict(script(written))

    return doubts


MERGED = [
    b'": "/',
    b'": "',
    b'tmp"}',
    b'/tmp"}}',
    b'"}}\n',
    b'"}',
    b"}}",
    b' "/home/me',
    b"e/pro",
    b"tool",
]
"""Tokens that reach over the quotes of the path, and over its end."""


def merging() -> list[ScriptedMember]:
    """Two models that write the call in long tokens, each in its own."""

    def script(words: list[bytes]) -> Script:
        def longest(written: bytes) -> Mapping[bytes, float]:
            rest = CALL.encode()[len(written) :]
            fitting = [w for w in [*words, rest[:1]] if w and rest.startswith(w)]
            return {max(fitting, key=len, default=END): 0.9}

        return doubtful(longest)

    halves = MERGED[::2] + [b"me"], MERGED[1::2]
    return [ScriptedMember(f"m{len(words)}", words, script(words)) for words in halves]


def left(stop: str) -> str:
    """What a stop string leaves of the call."""
    return CALL[: CALL.index(stop)]
