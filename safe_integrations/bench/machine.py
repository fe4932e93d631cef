"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The machine and the libraries, as JSON-safe data."""
    torch = sys.modules.get("torch")  # asked where it is loaded, never loaded for this
    affinity = getattr(os, "sched_getaffinity", None)
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load": load and [round(x, 2) for x in load],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "threads": torch and torch.get_num_threads(),
        **{name: _version(name) for name in ("safe-integrations", "torch", "transformers")},
    }


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes; None where nobody knows."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def resident_memory() -> int | None:
    """The memory that this process holds now, in bytes; None where nobody knows."""
    file = Path("/proc/self/statm")
    if not file.is_file():
        return None
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
