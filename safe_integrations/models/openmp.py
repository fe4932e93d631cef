"""One team of OpenMP threads at a time.

Every thread that computes gets a team of its own from GNU's OpenMP, and keeps it. Where all teams
together are more threads than the machine has cores, none of them spins any more between two
parallel loops: they sleep, and waking them up a thousand times makes a forward pass take half as
long again. So whoever has to wait for another thread's pass sends his team home.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_SOFT: Final = 1

_pauses: Final[dict[int | None, Callable[[int], int]]] = {}


def uses_openmp(*libraries: str | Path) -> None:
    """Told by what computes with OpenMP, once it is loaded.

    torch and llama.cpp share a copy of GNU's OpenMP where it has its usual name, whichever of them
    came first; else each has its own.

    Args:
        libraries: Where copies may lie. Those that are not loaded, or are another OpenMP, are none
            of our business.
    """
    for library in libraries if hasattr(os, "RTLD_NOLOAD") else ():
        try:
            loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            pause = loaded.omp_pause_resource_all
        except (OSError, AttributeError):
            continue
        _pauses[ctypes.cast(pause, ctypes.c_void_p).value] = pause


def send_team_home() -> None:
    """Ends the OpenMP threads of this thread; the next parallel loop makes new ones."""
    for pause in tuple(_pauses.values()):
        pause(_SOFT)
