r"""Which grammar a call must follow: its response format, its tools, or both.

A forced tool call is written in the form that all models have agreed on, from its first byte on:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

With `tool_choice="auto"` a model may write any text; once it has written what opens a call, only a
well-formed call of one of the tools may follow, and then text again. There, and only there, a tool
whose schema no call can be held to may be called with any arguments, unless it is `strict`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from safe_integrations.calls.form import Form
from safe_integrations.calls.forms import HERMES
from safe_integrations.calls.parameters import (
    breach,
    literal,
    parameters,
    pattern,
    shared,
    text_rule,
)
from safe_integrations.calls.places import places_of
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
from safe_integrations.structure.schemas import json_rule, violation


def constraint_for(options: GenerationConfig, form: Form = HERMES) -> Constraint | None:
    """The constraint that the options of one call ask for, or None where any text will do.

    `tool_choice="auto"` is left unconstrained where `llguidance` is not installed.

    Args:
        options: How the answer is made.
        form: How calls are written.

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
        lark = "start: calls\n" + _calls(form, wanted, several)
        return Constraint(lark, "tools", tools, ends=form.ends, places=partial(places_of, form))
    if response_format is None:
        if not wanted or find_spec("llguidance") is None:
            return None
        lark = _possible_calls(form, wanted, options.parallel_tool_calls)
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
    calls = _calls(form, wanted, options.parallel_tool_calls, forced=False)
    lark = f"start: calls | {literal(form.says)} answer\n{calls}answer: {answer}\n"
    return Constraint(lark, "tools", tools, ends=form.ends, places=partial(places_of, form))


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


def _calls(form: Form, tools: Sequence[Tool], several: bool, forced: bool = True) -> str:
    """The rule `calls`: calls of the tools, from the first byte on."""
    return f"opening: {literal(form.opening)}\n{_behind_openings(form, tools, several, forced)}"


def _possible_calls(form: Form, tools: Sequence[Tool], several: bool) -> str:
    """The grammar of text that may turn into calls, and of what then follows."""
    opening, free = literal(form.opening), ANY_TEXT
    if form.says:
        start = f"calls | {literal(form.says)} TEXT"
    elif form.alone:
        start, free = "calls | TEXT", f"{ANY_TEXT} & ~/(?s:{pattern(form.opening)}.*)/"
    else:
        start = "calls* text\ntext: TEXT" if several else "calls | TEXT"
        opening = f"TEXT {opening}"
    lazy = "" if form.alone else "[lazy]"
    calls = _behind_openings(form, tools, several, forced=False)
    return f"start: {start}\nTEXT: {free}\nopening{lazy}: {opening}\n{calls}"


def _behind_openings(form: Form, tools: Sequence[Tool], several: bool, forced: bool) -> str:
    before, after = (literal(text, form.loose) for text in form.around_calls)
    joint = literal(form.joint, form.loose)
    again = f"({joint} call)*" if form.section else f"({joint} opening call)*"
    if not several or (form.alone and not form.section):
        again = ""
    names = " | ".join(f"call_{i}" for i in range(len(tools)))
    rules = [f"calls: opening {before} call {again} {after}", f"call: {names}"]
    for i, tool in enumerate(tools):
        first, between, last = form.around
        head = literal(first + tool.name + between, form.loose)
        rules.append(f"call_{i}: {head} arguments_{i} {literal(last, form.loose)}")
        rules.append(_arguments(form, tool, i, forced))
    return "\n".join(rules) + "\n" + shared(form)


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a call: an object, without keys that the tool's does not speak of."""
    schema: dict[str, Any] = closed({"type": "object", "properties": {}, **tool.parameters})
    return schema


def _arguments(form: Form, tool: Tool, number: int, forced: bool) -> str:
    """The rule `arguments_<number>`, and those that it needs."""
    argument, schema = f"tools[{tool.name}].parameters", arguments_schema(tool)
    made = partial(_rule, form, f"arguments_{number}", argument)
    try:
        if schema["type"] != "object":
            raise InvalidArgumentError(
                argument, tool.parameters, "arguments are an object: pass the schema of one"
            )
        return made(schema, tool.strict)
    except InvalidArgumentError:
        if forced or tool.strict:
            raise
        return made({"type": "object"}, False)


def _rule(form: Form, name: str, argument: str, schema: dict[str, Any], strict: bool | None) -> str:
    if form.is_json:
        return f"{name}: {json_rule(schema, argument, strict)}"
    return parameters(form, name, argument, schema, strict)


def arguments_violation(form: Form, tool: Tool, arguments: dict[str, Any]) -> str | None:
    """Which part of its tool's schema a whole call breaks, as a sentence; None where none.

    Only parts that the grammar of the form does not enforce can be broken.
    """
    schema = arguments_schema(tool)
    return violation(schema, arguments) if form.is_json else breach(form, schema, arguments)


def _answer_rule(response_format: JsonSchema | Regex | Choice) -> str:
    match response_format:
        case JsonSchema():
            return json_rule(response_format.schema_, "response_format", response_format.strict)
        case Choice():
            return " | ".join(map(text_rule, response_format.options))
        case Regex():
            made = json.loads(library().LLMatcher.grammar_from_regex(response_format.pattern))
            lark: str = made["grammars"][0]["lark_grammar"]
            return lark.removeprefix("start: ")
