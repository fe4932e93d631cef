"""Draws what `python -m benchmarks --json FILE` measured: python benchmarks/plot.py FILE PNG."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import TITLES, Way

PARTS = {
    "draft": "#4477aa",
    "verify": "#ccbb44",
    "ensemble": "#228833",
    "tokenise": "#aa3377",
    "rest": "#ee6677",
}
WAYS = {
    "safe": "#4477aa",
    "drafter-only": "#228833",
    "generate": "#bbbbbb",
    "packed": "#ccbb44",
    "continuous": "#ee6677",
}


def plot(document: dict[str, Any], file: Path) -> None:
    """Draws the ratio by length and where the time went, or many answers at once."""
    if "levels" in document:
        _many(document, file)
        return
    figure = Figure(figsize=(13, 5.5), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    _ratios(left, document["cells"], document["settings"]["lengths"])
    _times(right, document["cells"])
    figure.savefig(file)


def _many(document: dict[str, Any], file: Path) -> None:
    """Draws throughput by answers at once, with its bound, and what a pass of it holds."""
    figure = Figure(figsize=(13, 5.5), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    levels = document["levels"]
    at_once = [level["at_once"] for level in levels]
    for way, colour in WAYS.items():
        line = [level["ways"][way] for level in levels if way in level["ways"]]
        if not line:
            continue
        label = TITLES[cast(Way, way)]
        left.plot(at_once, [n["ratio"] for n in line], marker="o", color=colour, label=label)
        if "bound_ratio" in line[0]:
            bounds = [n["bound_ratio"] for n in line]
            left.plot(at_once, bounds, linestyle=":", color=colour, label=f"{label}: the bound")
        speeds = [n["tokens_per_second"] for n in line]
        right.plot(at_once, speeds, marker="o", color=colour, label=label)
    left.set(title="Throughput, as a multiple of one after another", ylabel="times")
    right.set(title="Throughput", ylabel="tokens per second, all answers together")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(at_once, [str(n) for n in at_once])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("answers at once")
        axes.legend(fontsize="small", loc="upper left")
        axes.grid(alpha=0.3)
    figure.savefig(file)


def _ratios(axes: Axes, cells: list[dict[str, Any]], lengths: list[int]) -> None:
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        lines.setdefault((cell["pair"], cell["prompt"]), []).append(cell)
    for nth, ((pair, prompt), line) in enumerate(lines.items()):
        found = [cell["ratios"]["safe/generate"] for cell in line]
        errors = ([s["median"] - s["low"] for s in found], [s["high"] - s["median"] for s in found])
        axes.errorbar(
            [cell["length"] for cell in line],
            [s["median"] for s in found],
            yerr=errors,
            label=f"{pair}, {prompt}",
            marker="osD^v<>"[nth % 7],
            linestyle="--" if prompt == "rag" else "-",
            capsize=3,
        )
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="tokens", ylabel="speed, as a multiple of the drafter alone")
    axes.set_title("SAFE against generate() of its drafter")
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)


def _times(axes: Axes, cells: list[dict[str, Any]]) -> None:
    places = range(len(cells))
    base = [0.0] * len(cells)
    for part, colour in PARTS.items():
        heights = [_ms_per_token(cell, "safe", part) for cell in cells]
        axes.bar(places, heights, bottom=base, label=part, color=colour, width=0.7)
        base = [b + h for b, h in zip(base, heights, strict=True)]
    axes.scatter(
        places,
        [_ms_per_token(cell, "generate") for cell in cells],
        marker="_",
        s=250,
        color="black",
        label="generate() of the drafter, whole",
    )
    labels = [f"{c['prompt']} {c['length']}\n{c['pair'].replace(' -> ', chr(10))}" for c in cells]
    axes.set_xticks(places, labels, fontsize="x-small", rotation=90)
    axes.set_ylabel("ms per token, reading the prompt included")
    axes.set_title("Where the time of SAFE goes")
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize="small", ncols=3, loc="upper right")
    axes.grid(alpha=0.3, axis="y")


def _ms_per_token(cell: dict[str, Any], way: str, part: str | None = None) -> float:
    """Median of the repetitions: of the whole, or of a part of it."""
    runs = [run for runs in cell["repetitions"] for run in runs if run["way"] == way]
    shares = [(run["parts"][part] if part else run["seconds"]) / run["tokens"] for run in runs]
    return float(1000 * median(shares))


if __name__ == "__main__":
    measured, picture = map(Path, sys.argv[1:])
    plot(json.loads(measured.read_text(encoding="utf-8")), picture)
