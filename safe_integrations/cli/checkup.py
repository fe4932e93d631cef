"""What `doctor` finds out: versions, memory, and how well two tokenizers fit each other."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from safe_integrations.engine.segments import Segmentation
from safe_integrations.engine.tokens import TokenTable

PACKAGES: Final = ("torch", "transformers", "numpy", "pydantic")
EXTRAS: Final = ("langchain-core", "llama-index-core", "llguidance", "opentelemetry-api")

SAMPLES: Final = {
    "English": (
        "The quick brown fox doesn't jump over the lazy dog; it walks around it, quietly. "
        "Photosynthesis converts carbon dioxide and water into glucose, releasing oxygen."
    ),
    "code": (
        "def mean(values: list[float]) -> float:\n"
        '    """Average of the values."""\n'
        "    if not values:\n        raise ValueError('no values')\n"
        "    return sum(values) / len(values)  # O(n)\n"
    ),
    "numbers": "1234 + 5678 = 6912; 3.14159265 * 2.5e-3 = 0.00785; 2026-11-23, 1,000,000 and 42%.",
    "Chinese": "人工智能模型可以一起写出一个答案。每个模型都有自己的分词器,所以边界并不总是相同。",
    "emoji": "Great job 👍🏽! 🎉🎉 See you at the 🏖️ with 👨‍👩‍👧‍👦 tomorrow 😀.",
}
"""Text of several kinds, to tokenise with both models of a pair."""


@dataclass(frozen=True)
class Fit:
    """How two tokenizers cut the same text.

    Attributes:
        boundaries: Token boundaries of the drafter.
        common: Of these, boundaries of the verifier too: places where the draft can be checked.
        length: Length of the text, in bytes.
    """

    boundaries: int
    common: int
    length: int

    @property
    def share(self) -> float:
        """Share of the drafter's boundaries that the verifier has too."""
        return self.common / self.boundaries if self.boundaries else 1.0

    @property
    def bytes_between(self) -> float:
        """Mean number of bytes from one common boundary to the next."""
        return self.length / self.common if self.common else float(self.length)


def installed(packages: Sequence[str]) -> dict[str, str | None]:
    """The version of each package; None where it is not installed."""
    return {package: _version(package) for package in packages}


def embedded() -> dict[str, bool]:
    """The models that pip installs, and whether each is there."""
    from safe_integrations.models.embedded import EMBEDDED, is_installed

    return {name: is_installed(name) for name in EMBEDDED}


def conversions() -> tuple[Path, int, int]:
    """Where GGUF files are converted to, how many are there, and their bytes."""
    from safe_integrations.models.transformers.gguf import cache_dir, is_intact

    root = cache_dir() / "gguf"
    folders = [folder for folder in root.glob("*/") if is_intact(folder)]
    return root, len(folders), sum(p.stat().st_size for f in folders for p in f.iterdir())


def fits(drafter: TokenTable, verifier: TokenTable) -> dict[str, Fit]:
    """How two tokenizers fit each other on each of the sample texts."""
    found = {}
    for kind, text in SAMPLES.items():
        data = text.encode()
        ours, theirs = _boundaries(drafter, data), _boundaries(verifier, data)
        found[kind] = Fit(len(ours), len(ours & theirs), len(data))
    return found


def total(parts: Sequence[Fit]) -> Fit:
    """All sample texts together."""
    return Fit(*(sum(getattr(f, n) for f in parts) for n in ("boundaries", "common", "length")))


def available_memory() -> int | None:
    """Memory that can still be taken, in bytes; None where the system does not tell."""
    bounds = [_meminfo_available(), _cgroup_available()]
    return min((b for b in bounds if b is not None), default=None)


def python_version() -> str:
    """The Python that runs this."""
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _boundaries(tokens: TokenTable, text: bytes) -> set[int]:
    view = Segmentation(tokens)
    view.update(text, 0)
    return set(view.ends)


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_available() -> int | None:
    """What a container may still take: memory.max less what is in use and cannot be dropped."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        stat = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
