"""What memory there is."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

_CGROUP: Final = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Memory that can still be taken, in bytes: of the machine, or of the container's share.

    None where psutil is not installed.
    """
    try:
        import psutil
    except ImportError:
        return None
    free = int(psutil.virtual_memory().available)
    try:  # cgroup 2: the limit, less what is in use and cannot be dropped
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such thing, or no limit
        return free
    return min(free, max(0, limit - used + int(stat.get("inactive_file", 0))))


def available_on(devices: Iterable[torch.device]) -> int | None:
    """Memory that can still be taken on some devices, in bytes; None where one does not tell."""
    found = [_available_on(device) for device in set(devices)]
    return None if None in found else sum(free for free in found if free is not None)


def _available_on(device: torch.device) -> int | None:
    import torch

    if device.type == "cpu":
        return available_memory()
    if device.type == "cuda":  # what torch keeps for later is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0 if device.type == "meta" else None  # weights that are not here yet take their place


def return_free_memory() -> None:
    """Has glibc return what it holds free: tokenizers leave plenty. Others cannot be told to."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
