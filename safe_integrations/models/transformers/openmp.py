"""One team of OpenMP threads at a time.

Every thread that computes with torch gets a team of its own from GNU's OpenMP, and keeps it. Where
all teams together are more threads than the machine has cores, none of them spins any more between
two parallel loops: they sleep, and waking them up a thousand times makes a forward pass take half
as long again. So whoever has to wait for another thread's pass sends his team home.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import torch

_SOFT: Final = 1


def send_team_home() -> None:
    """Ends the OpenMP threads of this thread; the next parallel loop makes new ones."""
    if pause := _pause():
        pause(_SOFT)


@cache
def _pause() -> Callable[[int], int] | None:
    """`omp_pause_resource_all` of the library that torch uses; None where it is another one."""
    folder = Path(torch.__file__).parent
    for path in sorted(folder.glob("lib/libgomp*")) + sorted(
        folder.parent.glob("torch.libs/libgomp*")
    ):
        try:
            pause: Callable[[int], int] = ctypes.CDLL(str(path)).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
        return pause
    return None
