"""What is installed, and what memory there is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package; None where it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for package in found:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


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
