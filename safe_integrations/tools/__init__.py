"""Tools: how calls are asked for, enforced and read, whatever the models' own formats are."""

from safe_integrations.tools.grammar import constraint_for
from safe_integrations.tools.parse import parse
from safe_integrations.tools.plain import (
    plain_assistant_call,
    plain_tool_prompt,
    plain_tool_result,
    render_tools_plainly,
    template_supports_tools,
    tool_signature,
)
from safe_integrations.tools.stream import ToolCallStream
from safe_integrations.tools.types import (
    InvalidToolCall,
    ParsedAnswer,
    ToolCall,
    ToolCallDelta,
    new_call_id,
)

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
