"""How many threads compute, and how they wait for each other.

A pass is some hundred steps, and behind each its threads wait for each other. By default they spin
while they wait, which is fastest on idle cores. But where a core is busy with something else, torch
or another program, its thread comes late to every step, and the others spin away the time that it
needs: a pass that takes 10 ms takes seconds. So ours spin for microseconds, and then sleep.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CHOSEN: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPINS: Final = "1000"
_SHARE: Final = Path("/sys/fs/cgroup/cpu.max")
_SIBLINGS: Final = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def threads() -> int:
    """Threads to compute with: `OMP_NUM_THREADS`, else one for each core of the process.

    More than its container may keep busy would be stopped in the middle of every pass.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:  # cgroup 2: microseconds of computing time in each so many
        quota, period = map(int, _SHARE.read_text().split())
    except (OSError, ValueError):  # no such thing, or no limit
        return _cores()
    return max(1, min(_cores(), quota // period))


def _cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    try:  # two halves of a core are no faster than one of them
        return len({Path(_SIBLINGS.format(cpu)).read_text() for cpu in cpus})
    except OSError:
        return len(cpus)


@contextmanager
def patience() -> Iterator[None]:
    """Has libgomp, where it is loaded meanwhile, spin only briefly; unless somebody has chosen."""
    if any(name in os.environ for name in _CHOSEN):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
