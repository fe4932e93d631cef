"""Tools and schemas, in the many forms that LangChain's users give them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from safe_integrations.adapters.request import LOCAL_TIME, openai_function, schema_of
from safe_integrations.errors import InvalidArgumentError

AnyTool = Mapping[str, Any] | type | Callable[..., Any] | BaseTool


def openai_tool(tool: AnyTool, strict: bool | None = None) -> dict[str, Any]:
    """A tool in OpenAI's form.

    LangChain's own converter does it, where nothing is lost by that: it drops what a titled schema
    holds besides `properties`, the schema of `{"name", "schema"}`, and references in a circle.

    Args:
        tool: A function, a class, a tool, a JSON schema with a title, or a dict in OpenAI's or
            another provider's form.
        strict: Whether every argument is required.

    Raises:
        InvalidArgumentError: It is not a function (`web_search` and the like run elsewhere), or
            cannot be read.
    """
    given: Any = openai_function(tool)
    if given is not None:
        given = {k: v for k, v in given.items() if k != "type"}
    elif isinstance(tool, Mapping):
        given = _function(tool)
    elif _in_a_circle(whole := _schema(tool)) or LOCAL_TIME in json.dumps(whole):
        named = {"name": tool.name} if isinstance(tool, BaseTool) else {}
        given = {**_function(_unfolded(whole)), **named}
    if given is not None and strict is not None:  # it goes over what the schema says
        given = {k: v for k, v in given.items() if k != "strict"}
    try:
        formatted = convert_to_openai_tool(tool if given is None else given, strict=strict)
    except RecursionError:  # a TypedDict that holds itself
        return openai_tool(_unfolded(schema_of(cast("type", tool))), strict)
    except ValueError as error:
        raise InvalidArgumentError("tools", tool, str(error).replace("\n\n", " ")) from None
    function = formatted.get("function")
    if not isinstance(function, dict):
        raise InvalidArgumentError("tools", tool, "only functions can be called by local models")
    if isinstance(tool, type | Mapping):  # `Box[int]` is a class, and no name of a function
        function["name"] = re.sub(r"[^\w.-]", "_", function["name"])[:128]
    return formatted


def json_schema(given: Any, strict: bool | None = None) -> dict[str, Any]:
    """The JSON schema of a class, or of a dict in one of the forms that tools have.

    Args:
        given: The class or dict.
        strict: Whether every field is required.
    """
    if isinstance(given, Mapping):
        function = openai_function(given) or given.get("json_schema") or given
        parts = ("parameters", "schema", "input_schema")
        schema = next((function[part] for part in parts if part in function), function)
    elif hasattr(given, "model_json_schema"):
        schema = schema_of(given)
    else:
        try:
            return convert_to_json_schema(given, strict=strict)
        except RecursionError:  # a TypedDict that holds itself
            schema = schema_of(given)
    if not strict:
        return dict(schema)
    wrapped = {"title": "wrapped", "properties": {"schema": schema}}
    made: dict[str, Any] = convert_to_json_schema(wrapped, strict=True)["properties"]["schema"]
    return made


def _schema(tool: AnyTool) -> dict[str, Any]:
    """The schema of what a tool takes, where pydantic can tell."""
    kind: Any = getattr(tool, "tool_call_schema", tool)
    if inspect.isfunction(kind) or inspect.ismethod(kind):
        kind = StructuredTool.from_function(
            kind,
            description=None if kind.__doc__ else "",
            parse_docstring=True,
            error_on_invalid_docstring=False,
        ).tool_call_schema
    return schema_of(kind) if hasattr(kind, "model_json_schema") else {}


def _unfolded(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that is a reference to one of its definitions, as that definition."""
    root = schema.get("$ref", "").removeprefix("#/$defs/")
    return {
        **{k: v for k, v in schema.items() if k != "$ref"},
        **schema.get("$defs", {}).get(root, {}),
    }


def _function(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A JSON schema with a title, or one with a name beside it, as a function of OpenAI's."""
    if "name" in given and "schema" in given:
        name, schema = given["name"], given["schema"]
    elif "title" in given and "name" not in given:
        name, schema = given["title"], {k: v for k, v in given.items() if k != "title"}
    else:
        return given
    about = given.get("description") or schema.get("description") or ""
    parameters = {k: v for k, v in schema.items() if k != "description"}
    if parameters.get("type", "object") != "object" or parameters.keys() & {"enum", "const"}:
        remedy = 'arguments of a tool are an object: use method="json_schema"'
        raise InvalidArgumentError("schema", given, remedy)
    return {
        "name": name,
        "description": about,
        "parameters": {"type": "object", **parameters},
        **({"strict": given["strict"]} if given.get("strict") is not None else {}),
    }


def _in_a_circle(schema: Mapping[str, Any]) -> bool:
    """Whether definitions of a schema refer to themselves."""
    parts = {f"#/$defs/{name}": part for name, part in schema.get("$defs", {}).items()}
    refers = {n: re.findall(r'"\$ref": "([^"]+)"', json.dumps(p)) for n, p in parts.items()}
    try:
        TopologicalSorter(refers).prepare()
    except CycleError:
        return True
    return False
