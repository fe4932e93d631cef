"""What every asynchronous way to ask owes its event loop, proved with a model that waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

_PATIENCE = 2  # seconds until a blocked loop is given up; nothing that is right waits
_HOPS = 50  # turns of the loop that a cancellation may take through tasks that wait for tasks


class Gate:
    """Holds a model up in a forward pass until it is opened, and counts the passes.

    A scripted model calls it at the start of every pass.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.entered = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        self.passes += 1
        self.entered.set()
        assert self._opened.wait(_PATIENCE), "the event loop is blocked: nobody opened the gate"

    async def reached(self) -> None:
        """Waits until the model computes."""
        assert await asyncio.to_thread(self.entered.wait, _PATIENCE), "no model was asked"

    def open(self) -> None:
        """Lets the model go on, in this pass and in all that follow."""
        self._opened.set()


async def answer_beside_a_free_loop(gate: Gate, asking: Coroutine[Any, Any, T]) -> T:
    """The answer, written by a model that goes on only if the loop gets its turn meanwhile."""

    async def opens() -> None:
        await gate.reached()
        gate.open()

    opening = asyncio.create_task(opens())
    answer = await asking
    await opening
    return answer


async def cancel_within_a_pass(gate: Gate, asking: Coroutine[Any, Any, Any]) -> None:
    """Cancels a task while its model computes; checks that this pass was the last one."""
    task = asyncio.create_task(asking)
    await gate.reached()
    task.cancel()
    for _ in range(_HOPS):
        await asyncio.sleep(0)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(join_generations)
    assert gate.passes == 1


def join_generations() -> None:
    """Waits for threads that generate: what they have not done by now they never do."""
    for thread in threading.enumerate():
        if thread.name.startswith("safe-"):
            thread.join(_PATIENCE)
            assert not thread.is_alive()
