"""Tools and schemas, in the many forms that LangChain's users give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from safe_integrations.adapters.request import openai_function
from safe_integrations.errors import InvalidArgumentError

AnyTool = Mapping[str, Any] | type | Callable[..., Any] | BaseTool


def openai_tool(tool: AnyTool, strict: bool | None = None) -> dict[str, Any]:
    """A tool in OpenAI's form.

    Raises:
        InvalidArgumentError: It is not a function (`web_search` and the like run elsewhere).
    """
    formatted = convert_to_openai_tool(tool, strict=strict)
    if openai_function(formatted) is None:
        raise InvalidArgumentError("tools", tool, "only functions can be called by local models")
    return formatted


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a class."""
    return convert_to_json_schema(kind)
