"""What callers say, in the many ways they are used to, as the engine's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema, Tool
from safe_integrations.errors import InvalidArgumentError

ENSEMBLE_OPTIONS: Final = frozenset(EnsembleConfig.model_fields)
GENERATION_OPTIONS: Final = frozenset(GenerationConfig.model_fields)

AnyTool = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

_CHOICES: Final[Mapping[object, str]] = {
    "auto": "auto",
    "none": "none",
    False: "none",
    "any": "required",
    "required": "required",
    True: "required",
}
_NOT_DATA: Final = ("const", "enum", "default", "examples")


def generation_config(given: Mapping[str, Any]) -> GenerationConfig:
    """The options of one answer; None stands for the default.

    Where a call is forced, it is one call unless `parallel_tool_calls` is given: small models that
    may go on calling do. And stop strings are left out: they would cut the call itself.

    Args:
        given: Fields of `GenerationConfig`. Tools, tool_choice and response_format may have any
            form that chat models are given.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if "tools" in options:
        options["tools"] = tuple(engine_tool(tool) for tool in options["tools"])
    if "tool_choice" in options:
        names = [tool.name for tool in options.get("tools", ())]
        options["tool_choice"] = tool_choice(options["tool_choice"], names)
        forced = options["tool_choice"] not in ("auto", "none")
        options.setdefault("parallel_tool_calls", not forced)
        if forced:
            options.pop("stop", None)
    if "response_format" in options:
        options["response_format"] = response_format(options["response_format"])
    return GenerationConfig(**options)


def openai_tool(tool: AnyTool, strict: bool | None = None) -> dict[str, Any]:
    """A tool in OpenAI's form.

    Raises:
        InvalidArgumentError: It is not a function (`web_search` and the like run elsewhere).
    """
    formatted = convert_to_openai_tool(tool, strict=strict)
    if not isinstance(formatted.get("function"), dict):
        raise InvalidArgumentError("tools", tool, "only functions can be called by local models")
    return formatted


def engine_tool(tool: AnyTool | Tool) -> Tool:
    """A tool as the engine takes it."""
    if isinstance(tool, Tool):
        return tool
    function = openai_tool(tool)["function"]
    fields = ("name", "description", "parameters")
    return Tool(**{key: function[key] for key in fields if function.get(key)})


def tool_choice(choice: Any, names: Sequence[str]) -> str:
    """Reads every form of tool_choice: words, booleans, a tool's name, OpenAI's and Anthropic's.

    Args:
        choice: What the caller said.
        names: Names of the tools.
    """
    name = choice
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        name = choice.get("type") if name is None else name
    elif choice in _CHOICES:
        return _CHOICES[choice]
    if name in names:
        return str(name)
    if isinstance(choice, Mapping) and name in _CHOICES:
        return _CHOICES[name]
    known = ", ".join(["auto", "none", "any", "required", *names])
    raise InvalidArgumentError("tool_choice", choice, f"use one of {known}")


def response_format(given: Any) -> Any:
    """Reads OpenAI's forms, Pydantic classes and TypedDicts; ours pass through."""
    if isinstance(given, type):
        return JsonSchema(schema=closed(convert_to_json_schema(given)))
    if not isinstance(given, Mapping) or isinstance(given, BaseModel):
        return given
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return JsonSchema(schema={"type": "object"})
        case "json_schema" if isinstance(given.get("json_schema"), Mapping):
            return JsonSchema(schema=closed(given["json_schema"].get("schema")))
        case _:
            return dict(given)


def closed(schema: Any) -> Any:
    """A JSON schema whose objects take no further keys, unless they say so themselves.

    A small model that may invent keys invents them.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {k: v if k in _NOT_DATA else closed(v) for k, v in schema.items()}
    if result.get("type") == "object" and isinstance(result.get("properties"), dict):
        composed = result.keys() & {"allOf", "anyOf", "oneOf", "patternProperties", "$ref"}
        if not composed:
            result.setdefault("additionalProperties", False)
    return result
