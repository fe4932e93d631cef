"""A call that is cut at every place, for the tests of both adapters."""

from __future__ import annotations

PATH = "/home/me/project/tmp"
CALL = f'<tool_call>\n{{"name": "delete", "arguments": {{"path": "{PATH}"}}}}\n</tool_call>'
WHOLE = len(CALL) - len("\n</tool_call>")
"""Characters up to which something of the call is missing."""

LENGTHS = range(1, len(CALL) + 2)
"""Every budget in tokens, one per character; the last one leaves room for the end."""

STOPS = sorted({CALL[i : i + n] for i in range(len(CALL)) for n in (1, 4)})
"""Stop strings that cut the call at every place."""


def left(stop: str) -> str:
    """What a stop string leaves of the call."""
    return CALL[: CALL.index(stop)]
