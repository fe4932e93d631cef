"""`safe-integrations schema`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from safe_integrations.cli import options as o
from safe_integrations.cli.render import out, print_json, progress
from safe_integrations.cli.tables import table
from safe_integrations.errors import InvalidArgumentError

Source = Annotated[str, typer.Argument(help="A file with a JSON schema, or module:Class.")]


def schema(
    source: Source,
    *,
    drafter: o.Drafter = None,
    verifier: o.Verifiers = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Show what a grammar enforces of a JSON schema, what is checked, and the smallest answer.

    Loads no weights. Exits with 1 where a model that was named cannot be used.
    """
    from safe_integrations.structure.schemas import enforced_keywords, smallest, split

    given = _read(source)
    found = split(given, "source")
    text = smallest(found)
    models = _models(text, drafter, verifier, quiet)
    if as_json:
        enforced = {k: v for k, v in json.loads(found.enforced).items() if k != "x-guidance"}
        checked = [{"at": at, "keyword": keyword} for at, keyword in found.checked]
        print_json({"enforced": enforced, "checked": checked, "smallest": text, "models": models})
    else:
        _show(enforced_keywords(given, found), found.checked, text, models)
    if (drafter or verifier) and any(model["problem"] for model in models):
        raise typer.Exit(1)


def _models(
    text: str | None, drafter: str | None, verifier: list[str] | None, quiet: bool
) -> list[dict[str, Any]]:
    """How many tokens a text is for each model, its end included."""
    from safe_integrations.models.inspection import inspect_model

    with progress(quiet) as tell:
        specs = o.specs_of(drafter, verifier, None, None)
        found = [inspect_model(spec, tell) for spec in specs]
    return [
        {
            "name": model.name,
            "role": "verifier" if nth else "drafter",
            "tokens": model.tokens and text and len(model.tokens.encode(text.encode())) + 1,
            "problem": model.problem,
        }
        for nth, model in enumerate(found)
    ]


def _show(
    enforced: dict[str, list[str]],
    checked: tuple[tuple[str, str], ...],
    text: str | None,
    models: list[dict[str, Any]],
) -> None:
    console = out()
    parts = table(None, "part of the schema", "enforced", "only checked", numbers=False)
    for at in dict.fromkeys([*enforced, *(at for at, _ in checked)]):
        left = [keyword for where, keyword in checked if where == at]
        parts.add_row(at, ", ".join(enforced.get(at, ())), ", ".join(left))
    console.print(parts, soft_wrap=False)
    if checked:
        note = "What is only checked is checked on the finished answer; strict refuses it."
        console.print(Text(note, "dim"))
    console.print(Text("\nSmallest answer that is known", "bold"))
    console.print("none: an answer may break off; strict refuses it" if text is None else text)
    console.print()
    sizes = table("Its tokens, the end included", "model", "role", "tokens", numbers=False)
    for model in models:
        tokens = str(model["tokens"] or "-")
        sizes.add_row(model["name"], model["role"], model["problem"] or tokens)
    console.print(sizes, soft_wrap=False)


def _read(source: str) -> dict[str, Any]:
    from safe_integrations.structure.classes import schema_of

    module, colon, name = source.rpartition(":")
    if not colon or Path(source).exists():
        return o.read_schema("source", Path(source))
    sys.path.insert(0, "")  # where the user stands, as with python -m
    try:
        kind = getattr(importlib.import_module(module), name)
        return schema_of(kind)
    except (ImportError, AttributeError) as error:
        raise InvalidArgumentError("source", source, f"it has no JSON schema: {error}") from None
    finally:
        sys.path.remove("")
