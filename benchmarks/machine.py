"""The machine that numbers were measured on, and the memory of this process."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from safe_integrations.cli.machine import versions


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
        **versions(("safe-integrations", "torch", "transformers", "xllamacpp")),
    }


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


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
