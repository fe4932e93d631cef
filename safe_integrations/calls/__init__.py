"""Tools: how calls are asked for, enforced and read, whatever the models' own formats are."""

from safe_integrations.calls.parse import parse
from safe_integrations.calls.plain import (
    plain_assistant_call,
    plain_tool_prompt,
    plain_tool_result,
    render_tools_plainly,
    template_supports_tools,
    tool_signature,
)
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import (
    InvalidToolCall,
    ParsedAnswer,
    ToolCall,
    ToolCallDelta,
    new_call_id,
)
from safe_integrations.structure.calls import constraint_for

__all__ = [
    "InvalidToolCall",
    "ParsedAnswer",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallStream",
    "constraint_for",
    "new_call_id",
    "parse",
    "plain_assistant_call",
    "plain_tool_prompt",
    "plain_tool_result",
    "render_tools_plainly",
    "template_supports_tools",
    "tool_signature",
]
