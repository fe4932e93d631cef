"""The report as a picture. Needs matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from safe_integrations.bench.benchmark import Cell, Report
from safe_integrations.errors import InvalidArgumentError

PARTS = (
    ("draft", "#4477aa"),
    ("verify", "#ccbb44"),
    ("ensemble", "#228833"),
    ("tokenise", "#aa3377"),
    ("rest", "#ee6677"),
)


def check_matplotlib() -> Any:
    """The library that draws.

    Raises:
        InvalidArgumentError: It is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        raise InvalidArgumentError(
            "--plot", "", "this needs matplotlib; pip install matplotlib, or leave it out"
        ) from None


def plot(report: Report, file: Path) -> None:
    """Draws the ratio by length, and where the time went.

    Raises:
        InvalidArgumentError: matplotlib is not installed.
    """
    figure = check_matplotlib().Figure(figsize=(13, 5.5), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    _ratios(left, report)
    _times(right, report)
    figure.savefig(file)


def _ratios(axes: Any, report: Report) -> None:
    lines: dict[tuple[str, str], list[Cell]] = {}
    for cell in report.cells:
        lines.setdefault((cell.pair, cell.prompt), []).append(cell)
    for nth, ((pair, prompt), cells) in enumerate(lines.items()):
        found = [(c.length, s) for c in cells if (s := c.ratio("safe", "generate"))]
        middle = [s.median for _, s in found]
        below, above = [s.median - s.low for _, s in found], [s.high - s.median for _, s in found]
        axes.errorbar(
            [length for length, _ in found], middle, yerr=(below, above), label=f"{pair}, {prompt}",
            marker="osD^v<>"[nth % 7], linestyle="--" if prompt == "rag" else "-", capsize=3,
        )  # fmt: skip
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(report.settings.lengths, [str(n) for n in report.settings.lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="tokens", ylabel="speed, as a multiple of the drafter alone")
    axes.set_title("SAFE against generate() of its drafter")
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)


def _times(axes: Any, report: Report) -> None:
    places = range(len(report.cells))
    base = [0.0] * len(report.cells)
    for name, colour in PARTS:
        heights = [_ms(cell, name) for cell in report.cells]
        axes.bar(places, heights, bottom=base, label=name, color=colour, width=0.7)
        base = [b + h for b, h in zip(base, heights, strict=True)]
    alone = [c.over("generate", lambda run: 1000 / run.speed) for c in report.cells]
    axes.scatter(
        places, [s.median if s else float("nan") for s in alone], marker="_", s=250, color="black",
        label="generate() of the drafter, whole",
    )  # fmt: skip
    labels = [f"{c.prompt} {c.length}\n{c.pair.replace(' -> ', chr(10))}" for c in report.cells]
    axes.set_xticks(places, labels, fontsize="x-small", rotation=90)
    axes.set_ylabel("ms per token, reading the prompt included")
    axes.set_title("Where the time of SAFE goes")
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize="small", ncols=3, loc="upper right")
    axes.grid(alpha=0.3, axis="y")


def _ms(cell: Cell, part: str) -> float:
    found = cell.over("safe", lambda run: 1000 * float(getattr(run.parts, part)) / run.tokens)
    return found.median if found else 0.0
