"""`safe-integrations doctor`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from safe_integrations import __version__
from safe_integrations.cli import options as o
from safe_integrations.cli.render import out, print_json, progress
from safe_integrations.cli.tables import table

if TYPE_CHECKING:
    from safe_integrations.models.report import ModelReport
    from safe_integrations.models.spec import ModelSpec

PACKAGES: Final = ("torch", "transformers", "numpy", "pydantic")
EXTRAS: Final = (
    "langchain-core", "llama-index-core", "llguidance", "llama-cpp-python", "xllamacpp", "gguf",
    "opentelemetry-api",
)  # fmt: skip


def doctor(
    drafter: o.Drafter = None,
    verifier: o.Verifiers = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Tell what is installed, which models can be used, and how well they fit each other.

    Loads no weights; a GGUF file that transformers computes is converted (once). Exits with 1 where
    a model cannot be used.
    """
    report = _examine(o.specs_of(drafter, verifier, dtype, device), quiet)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if any(model["problem"] for model in report["models"]):
        raise typer.Exit(1)


def _examine(specs: Sequence[ModelSpec], quiet: bool) -> dict[str, Any]:
    """Everything that is found out, as JSON-safe data."""
    from safe_integrations.cli.machine import versions
    from safe_integrations.models import inspection
    from safe_integrations.models.embedded import EMBEDDED, is_installed
    from safe_integrations.models.memory import available_memory

    with progress(quiet) as tell:
        found = [inspection.inspect_model(spec, tell) for spec in specs]
    ours, *theirs = found
    agreed = inspection.form_of_calls(found)
    weights = [m.weight_bytes for m in found]
    return {
        "version": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": versions(PACKAGES),
        "extras": versions(EXTRAS),
        "embedded_models": {name: is_installed(name) for name in EMBEDDED},
        "converted_models": _conversions(),
        "models": [
            {
                **vars(m),
                "role": role,
                "tokens": m.tokens and m.tokens.size,
                "teaches": m.teaches and m.teaches.name,
            }  # fmt: skip
            for m, role in zip(found, ("drafter", *["verifier"] * len(theirs)), strict=True)
        ],
        "tool_form": {"form": agreed.form.name, "why": agreed.why},
        "pairs": [_pair(ours, other) for other in theirs if ours.tokens and other.tokens],
        "memory": {
            "weight_bytes": None if None in weights else sum(w or 0 for w in weights),
            "kv_bytes": sum(m.kv_bytes or 0 for m in found),
            "available_bytes": available_memory(),
        },
    }


def _conversions() -> dict[str, Any]:
    """Where GGUF files are converted to, how many are there, and their bytes."""
    from safe_integrations.models.transformers.gguf import cache_dir, is_intact

    root = cache_dir() / "gguf"
    folders = [folder for folder in root.glob("*/") if is_intact(folder)]
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    return {"folder": str(root), "count": len(folders), "bytes": size}


def _pair(ours: ModelReport, other: ModelReport) -> dict[str, Any]:
    from safe_integrations.evaluate.fit import fits

    assert ours.tokens is not None and other.tokens is not None
    samples = {
        kind: asdict(fit)
        | {"share": round(fit.share, 4), "bytes_between": round(fit.bytes_between, 2)}
        for kind, fit in fits(ours.tokens, other.tokens).items()
    }
    return {"drafter": ours.name, "verifier": other.name, "samples": samples}


def _show(report: dict[str, Any]) -> None:
    console = out()

    def show(*parts: RenderableType) -> None:
        for part in parts:
            console.print(part, soft_wrap=False)
        console.print()

    show(_installed(report))
    if usable := [model for model in report["models"] if not model["problem"]]:
        show(_models(usable), *(Text(f"{m['name']}: {m['where']}", "dim") for m in usable))
    for model in report["models"]:
        if model["problem"]:
            show(Text(f"{model['name']} cannot be used: {model['problem']}", "red"))
    for model in usable:
        if model["takes_turns"]:
            why = f"answers at the same time take turns at {model['name']}: {model['takes_turns']}"
            show(Text(why, "yellow"))
    if usable and not any(model["takes_turns"] for model in usable):
        show(Text("Answers at the same time share forward passes."))
    tool_form = report["tool_form"]
    show(Text(f"Tools are called in the form {tool_form['form']}: {tool_form['why']}"))
    for pair in report["pairs"]:
        show(_fit(pair))
    converted = report["converted_models"]
    console.print(_memory_line(report["memory"]))
    console.print(
        f"Converted GGUF files: {converted['count']}, {_size(converted['bytes'])} in "
        f"{converted['folder']}"
    )


def _installed(report: dict[str, Any]) -> Table:
    made = table("Installed")
    made.add_row("safe-integrations", report["version"])
    made.add_row("python", report["python"])
    for package, version in (report["packages"] | report["extras"]).items():
        made.add_row(package, version or "no")
    for name, there in report["embedded_models"].items():
        made.add_row(f"{name} (embedded)", "yes" if there else "no")
    return made


def _models(usable: list[dict[str, Any]]) -> Table:
    made = table("Models", "model", "role", "dtype", "tokens", "window", "weights", "KV / 1,000")
    for m in usable:
        window = m["context_window"]
        made.add_row(
            m["name"],
            m["role"],
            m["dtype"],
            f"{m['tokens']:,}",
            f"{window:,}" if window < 1 << 40 else "any",
            _size(m["weight_bytes"]),
            _size(m["kv_bytes"]),
        )
    return made


def _fit(pair: dict[str, Any]) -> Table:
    made = table(
        f"Places where {pair['verifier']} can check {pair['drafter']}",
        *("text", "drafter's tokens", "common ends", "share", "bytes between"),
    )
    for kind, sample in pair["samples"].items():
        made.add_row(
            kind,
            str(sample["boundaries"]),
            str(sample["common"]),
            f"{sample['share']:.0%}",
            f"{sample['bytes_between']:.1f}",
            style="bold" if kind == "all" else None,
        )
    return made


def _memory_line(memory: dict[str, Any]) -> str:
    needed, available = memory["weight_bytes"], memory["available_bytes"]
    line = (
        f"Memory: {_size(needed)} for weights, {_size(memory['kv_bytes'])} per 1,000 tokens; "
        f"{_size(available)} available"
    )
    if needed and available and needed > available:
        line += ": NOT ENOUGH; try smaller models, GGUF files of fewer bits, or --dtype bfloat16"
    return line


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
