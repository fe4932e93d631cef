"""Tools as plain text, for models whose chat template knows nothing of them.

The tools are described at the end of the system message, a call is written in the Hermes form
that `stream` reads, and a result is said by the user:

    <tool_response>
    22 °C, sunny
    </tool_response>
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from safe_integrations.config import Tool
from safe_integrations.messages import Message
from safe_integrations.structure.calls import CALL_END, CALL_START

_PROMPT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within \
{start}{end} XML tags:
{start}
{{"name": <function-name>, "arguments": <args-json-object>}}
{end}"""


def tool_signature(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI describes it, which is also what chat templates take."""
    return {"type": "function", "function": tool.model_dump(exclude={"strict"})}


def plain_tool_prompt(tools: Sequence[Tool]) -> str:
    """What a system message says about tools; the wording that Qwen and Hermes were trained on."""
    signatures = "\n".join(_json(tool_signature(tool)) for tool in tools)
    return _PROMPT.format(signatures=signatures, start=CALL_START, end=CALL_END)


def plain_assistant_call(content: str, tool_calls: Iterable[Mapping[str, Any]]) -> str:
    """An assistant's turn as text: what it said, and calls in OpenAI's form (JSON text or data)."""
    parts = [content] if content else []
    for call in tool_calls:
        function = call.get("function", call)
        name, arguments = _json(function["name"]), function.get("arguments") or {}
        written = arguments if isinstance(arguments, str) else _json(arguments)
        parts.append(f'{CALL_START}\n{{"name": {name}, "arguments": {written}}}\n{CALL_END}')
    return "\n".join(parts)


def plain_tool_result(content: str) -> str:
    """A tool's result, as text."""
    return f"<tool_response>\n{content}\n</tool_response>"


def render_tools_plainly(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Says everything about tools in system, user and assistant messages of plain text.

    Results that follow one another, and a user's words behind them, become one user message:
    many templates insist that user and assistant take turns.
    """
    plain: list[Message] = []
    after_result = False
    for message in messages:
        extra = {k: v for k, v in message.extra.items() if k not in ("tool_calls", "tool_call_id")}
        role, content = message.role, message.content
        if role == "assistant":
            content = plain_assistant_call(content, message.extra.get("tool_calls") or ())
        if role == "tool":
            role, content, extra = "user", plain_tool_result(content), {}
        if after_result and role == "user":
            content = f"{plain.pop().content}\n{content}"
        plain.append(Message(role, content, extra))
        after_result = role == "user" and (after_result or message.role == "tool")
    return _with_prompt(plain, plain_tool_prompt(tools)) if tools else plain


def template_supports_tools(chat_template: str | None) -> bool:
    """Whether a chat template renders both tools and the turns that use them."""
    if not chat_template or not re.search(r"tool_calls|[\"'](?:tool|ipython)[\"']", chat_template):
        return False
    try:
        from jinja2 import Environment, TemplateError, meta

        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(chat_template)
        return "tools" in meta.find_undeclared_variables(parsed)
    except (ImportError, TemplateError):  # a tag that only transformers knows
        return re.search(r"\btools\b", chat_template) is not None


def _with_prompt(messages: list[Message], prompt: str) -> list[Message]:
    if not messages or messages[0].role != "system":
        return [Message("system", prompt), *messages]
    first = messages[0]
    content = f"{first.content}\n\n{prompt}" if first.content else prompt
    return [Message("system", content, first.extra), *messages[1:]]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
