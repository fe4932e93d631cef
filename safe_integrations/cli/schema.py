"""`safe-integrations schema`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from safe_integrations.cli import options as o
from safe_integrations.cli.render import out, print_json
from safe_integrations.errors import InvalidArgumentError

Source = Annotated[str, typer.Argument(help="A file with a JSON schema, or module:Class.")]


def schema(source: Source, *, as_json: o.AsJson = False) -> None:
    """Show what a grammar enforces of a JSON schema, and what is checked on finished answers."""
    from safe_integrations.structure.schemas import split

    found = split(_read(source), "source")
    enforced = {k: v for k, v in json.loads(found.enforced).items() if k != "x-guidance"}
    checked = [{"at": at, "keyword": keyword} for at, keyword in found.checked]
    if as_json:
        print_json({"enforced": enforced, "checked": checked})
        return
    console = out()
    console.print("enforced while an answer is written:", style="bold")
    console.print(json.dumps(enforced, ensure_ascii=False))
    console.print("checked on the finished answer:" if checked else "all of it", style="bold")
    for part in checked:
        console.print(f"{part['keyword']} at {part['at']}")


def _read(source: str) -> dict[str, Any]:
    module, colon, name = source.rpartition(":")
    if not colon or Path(source).exists():
        return o.read_schema("source", Path(source))
    sys.path.insert(0, "")  # where the user stands, as with python -m
    try:
        kind = getattr(importlib.import_module(module), name)
        return TypeAdapter(kind).json_schema()
    except (ImportError, AttributeError, PydanticUserError) as error:
        raise InvalidArgumentError("source", source, f"it has no JSON schema: {error}") from None
    finally:
        sys.path.remove("")
