r"""Which grammar a call must follow: its response format, its tools, or both.

A forced tool call is written in the Hermes form, which `calls.stream` reads:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

With `tool_choice="auto"` a model may write any text; once it has written `<tool_call>`, only a
well-formed call of one of the tools may follow, and then text again. There, and only there, a tool
whose schema no call can be held to may be called with any JSON object, unless it is `strict`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from safe_integrations.config import (
    Choice,
    GenerationConfig,
    Grammar,
    JsonSchema,
    Regex,
    Tool,
)
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.structure.closed import closed
from safe_integrations.structure.constraint import ANY_TEXT, Constraint, library
from safe_integrations.structure.schemas import json_rule

CALL_START: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"


def constraint_for(options: GenerationConfig) -> Constraint | None:
    """The constraint that the options of one call ask for, or None where any text will do.

    `tool_choice="auto"` is left unconstrained where `llguidance` is not installed.

    Raises:
        InvalidArgumentError: The options contradict each other, or a schema cannot be guaranteed.
        MissingDependencyError: `llguidance` is needed and not installed.
    """
    tools, response_format = options.tools, options.response_format
    wanted = _callable_tools(tools, options.tool_choice)
    if options.tool_choice not in ("auto", "none"):
        if response_format is not None:
            raise InvalidArgumentError(
                "response_format", response_format, "leave it out where a tool call is forced"
            )
        several = options.parallel_tool_calls and options.tool_choice == "required"
        return Constraint(_forced_calls(wanted, several), "tools", tools)
    if response_format is None:
        if not wanted or find_spec("llguidance") is None:
            return None
        lark = _possible_calls(wanted, options.parallel_tool_calls)
        return Constraint(lark, "tools", tools, closes=False)
    if isinstance(response_format, Grammar):
        if wanted:
            raise InvalidArgumentError(
                "response_format", response_format, "a grammar cannot be combined with tools"
            )
        return Constraint(response_format.lark, "response_format", response_format)
    answer = _answer_rule(response_format)
    if not wanted:
        return Constraint(f"start: {answer}", "response_format", response_format)
    calls = _forced_calls(wanted, options.parallel_tool_calls, forced=False)
    lark = f"start: calls | answer\ncalls:{calls.removeprefix('start:')}answer: {answer}\n"
    return Constraint(lark, "tools", tools)


def _callable_tools(tools: Sequence[Tool], choice: str) -> Sequence[Tool]:
    """The tools that may be called."""
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgumentError("tools", names, f"there are several tools called {name!r}")
    if choice not in ("auto", "none", "required", *names):
        known = ", ".join(["auto", "none", "required", *names])
        raise InvalidArgumentError("tool_choice", choice, f"use one of {known}")
    if choice == "required" and not tools:
        raise InvalidArgumentError("tool_choice", choice, "pass at least one tool in `tools`")
    return [tool for tool in tools if choice in ("auto", "required", tool.name)]


def _forced_calls(tools: Sequence[Tool], several: bool, forced: bool = True) -> str:
    head = _text_rule(CALL_START + "\n")
    calls = 'call ("\\n" call)*' if several else "call"
    return f"start: {calls}\ncall: {head} body\n{_bodies(tools, forced)}"


def _possible_calls(tools: Sequence[Tool], several: bool) -> str:
    return (
        f"start: {'call* text' if several else 'call | text'}\n"
        f"text: TEXT\nTEXT: {ANY_TEXT}\n"
        f'call: open "\\n" body\n'
        f"open[lazy]: TEXT {_text_rule(CALL_START)}\n"
        f"{_bodies(tools, forced=False)}"
    )


def _bodies(tools: Sequence[Tool], forced: bool) -> str:
    """The rule `body`: a call of one of the tools, from behind the opening line on."""
    rules = ["body: " + " | ".join(f"body_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        head = _text_rule(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": ')
        rules.append(f"body_{i}: {head} arguments_{i} {_text_rule('}' + chr(10) + CALL_END)}")
        rules.append(f"arguments_{i}: {_arguments_rule(tool, forced)}")
    return "\n".join(rules) + "\n"


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a call: an object, without keys that the tool's does not speak of."""
    schema: dict[str, Any] = closed({"type": "object", "properties": {}, **tool.parameters})
    return schema


def _arguments_rule(tool: Tool, forced: bool) -> str:
    argument, schema = f"tools[{tool.name}].parameters", arguments_schema(tool)
    try:
        if schema["type"] != "object":
            raise InvalidArgumentError(
                argument, tool.parameters, "arguments are an object: pass the schema of one"
            )
        return json_rule(schema, argument, tool.strict)
    except InvalidArgumentError:
        if forced or tool.strict:
            raise
        return json_rule({"type": "object"}, argument)


def _answer_rule(response_format: JsonSchema | Regex | Choice) -> str:
    match response_format:
        case JsonSchema():
            return json_rule(response_format.schema_, "response_format", response_format.strict)
        case Choice():
            return " | ".join(map(_text_rule, response_format.options))
        case Regex():
            made = json.loads(library().LLMatcher.grammar_from_regex(response_format.pattern))
            lark: str = made["grammars"][0]["lark_grammar"]
            return lark.removeprefix("start: ")


def _text_rule(text: str) -> str:
    """A literal text as the right side of a Lark rule."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")
