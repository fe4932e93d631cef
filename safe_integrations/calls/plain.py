"""Tools as plain text, for models whose chat template teaches another form of a call, or none.

The tools are described at the end of the system message, a call is written in the form that all
models have agreed on, and a result is said by the user:

    <tool_response>
    22 °C, sunny
    </tool_response>
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from safe_integrations.calls.form import Form, dumps
from safe_integrations.calls.forms import HERMES
from safe_integrations.config import Tool
from safe_integrations.messages import Message

_PROMPT: Final = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return {what}:
{example}"""

_HERMES: Final = (
    "a json object with function name and arguments within <tool_call></tool_call> XML tags"
)


def tool_signature(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI describes it, which is also what chat templates take."""
    return {"type": "function", "function": tool.model_dump(exclude={"strict"})}


def plain_tool_prompt(tools: Sequence[Tool], form: Form = HERMES) -> str:
    """What a system message says about tools; the wording that Qwen and Hermes were trained on.

    Of a form that is not Hermes JSON it shows an example.
    """
    signatures = "\n".join(dumps(tool_signature(tool)) for tool in tools)
    given = "<args-json-object>" if form.is_json else {"<argument-name>": "<value>"}
    example = form.write([("<function-name>", given)]).replace(
        '"<function-name>"', "<function-name>"
    )
    what = _HERMES if form is HERMES else "text exactly like this"
    return _PROMPT.format(signatures=signatures, what=what, example=example)


def plain_assistant_call(
    content: str, tool_calls: Iterable[Mapping[str, Any]], form: Form = HERMES
) -> str:
    """An assistant's turn as text: what it said, and calls in OpenAI's form (JSON text or data)."""
    functions = [call.get("function", call) for call in tool_calls]
    calls = [(function["name"], function.get("arguments") or {}) for function in functions]
    return "\n".join(filter(None, [content, form.write(calls) if calls else ""]))


def plain_tool_result(content: str) -> str:
    """A tool's result, as text."""
    return f"<tool_response>\n{content}\n</tool_response>"


def render_tools_plainly(
    messages: Sequence[Message], tools: Sequence[Tool], form: Form = HERMES
) -> list[Message]:
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
            content = plain_assistant_call(content, message.extra.get("tool_calls") or (), form)
        if role == "tool":
            role, content, extra = "user", plain_tool_result(content), {}
        if after_result and role == "user":
            content = f"{plain.pop().content}\n{content}"
        plain.append(Message(role, content, extra))
        after_result = role == "user" and (after_result or message.role == "tool")
    return _with_prompt(plain, plain_tool_prompt(tools, form)) if tools else plain


def _with_prompt(messages: list[Message], prompt: str) -> list[Message]:
    if not messages or messages[0].role != "system":
        return [Message("system", prompt), *messages]
    first = messages[0]
    content = f"{first.content}\n\n{prompt}" if first.content else prompt
    return [Message("system", content, first.extra), *messages[1:]]
