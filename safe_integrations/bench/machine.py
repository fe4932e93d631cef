"""The machine and the libraries: what numbers were measured on, and what memory there is."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def machine() -> dict[str, Any]:
    """The machine and the libraries, as JSON-safe data."""
    torch = sys.modules.get("torch")  # asked where it is loaded, never loaded for this
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load": [round(x, 2) for x in psutil.getloadavg()],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "threads": torch and torch.get_num_threads(),
        **versions(("safe-integrations", "torch", "transformers")),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package; None where it is not installed."""
    return {package: _version(package) for package in packages}


def resident_memory() -> int:
    """The memory that this process holds now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes; None where nobody knows."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def available_memory() -> int:
    """Memory that can still be taken, in bytes: of the machine, or of the container's share."""
    free = int(psutil.virtual_memory().available)
    try:  # cgroup 2: the limit, less what is in use and cannot be dropped
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such thing, or no limit
        return free
    return min(free, max(0, limit - used + int(stat.get("inactive_file", 0))))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
