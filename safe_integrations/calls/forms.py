r"""How models write calls of tools: one table."""

from __future__ import annotations

from typing import Final

from safe_integrations.calls.form import Form
from safe_integrations.errors import InvalidArgumentError

_JSON: Final = '{"name": "$NAME", "arguments": $ARGS}'
_FUNCTION: Final = "\n<function=$NAME>\n$ARGS</function>\n"
_R1: Final = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>$NAME\n```json\n$ARGS\n```<｜tool▁call▁end｜>"
)
_HY: Final = "<arg_key:opensource>$KEY</arg_key:opensource>\n<arg_value:opensource>$VALUE"


def _dsml(name: str, tag: str) -> Form:
    return Form(
        name,
        f"<｜DSML｜{tag}>",
        '<｜DSML｜invoke name="$NAME">\n$ARGS</｜DSML｜invoke>\n',
        "raw",
        '<｜DSML｜parameter name="$KEY" string="{string}">$VALUE</｜DSML｜parameter>\n',
        section=f"\n$CALLS</｜DSML｜{tag}>",
    )


def _cohere(name: str, says: str) -> Form:
    return Form(
        name,
        "<|START_ACTION|>",
        '{"tool_call_id": "{index}", "tool_name": "$NAME", "parameters": $ARGS}',
        joint=",\n    ",
        section="[\n    $CALLS\n]<|END_ACTION|>",
        alone=True,
        says=says,
    )


HERMES: Final = Form("hermes", "<tool_call>", f"\n{_JSON}\n</tool_call>", joint="\n")
"""What all members can be taught in words, too."""

LIST: Final = Form("mistral-list", "[TOOL_CALLS]", _JSON, joint=", ", section="[$CALLS]")

_ALL: Final = (
    HERMES,
    Form(  # Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5
        "function-xml",
        "<tool_call>",
        f"{_FUNCTION}</tool_call>",
        "raw",
        "<parameter=$KEY>\n$VALUE\n</parameter>\n",
        joint="\n",
    ),
    Form(
        "seed",
        "<seed:tool_call>",
        f"{_FUNCTION}</seed:tool_call>",
        "raw",
        "<parameter=$KEY>$VALUE</parameter>\n",
        joint="\n",
    ),
    Form(  # GLM 4.6 and 4.7, Ling, Laguna, Spark
        "glm",
        "<tool_call>",
        "$NAME\n$ARGS</tool_call>",
        "raw",
        "<arg_key>$KEY</arg_key>\n<arg_value>$VALUE</arg_value>\n",
        joint="\n",
        loose=True,
    ),
    Form(
        "hunyuan",
        "<tool_calls:opensource>",
        "<tool_call:opensource>$NAME<tool_sep:opensource>\n$ARGS</tool_call:opensource>\n",
        "raw",
        f"{_HY}</arg_value:opensource>\n",
        section="\n$CALLS</tool_calls:opensource>",
    ),
    Form(  # MiniMax M2
        "minimax",
        "<minimax:tool_call>",
        '<invoke name="$NAME">\n$ARGS</invoke>\n',
        "raw",
        '<parameter name="$KEY">$VALUE</parameter>\n',
        section="\n$CALLS</minimax:tool_call>",
    ),
    _dsml("dsml", "function_calls"),  # DeepSeek V3.2
    _dsml("dsml-4", "tool_calls"),  # DeepSeek V4
    Form(
        "minicpm",
        '<function name="',
        '$NAME">$ARGS</function>',
        "raw",
        '<param name="$KEY">$VALUE</param>',
        joint="\n",
    ),
    Form("mistral", "[TOOL_CALLS]", "$NAME[ARGS]$ARGS", "json"),  # Ministral 3, Devstral
    Form("mistral-id", "[TOOL_CALLS]", "$NAME[CALL_ID]{id}[ARGS]$ARGS", "json"),  # Small 3.2
    LIST,  # Nemo
    Form("apriel", "<tool_calls>", _JSON, joint=", ", section="[$CALLS]</tool_calls>"),
    Form("minimax-1", "<tool_calls>", _JSON, joint="\n", section="\n$CALLS\n</tool_calls>"),
    Form("nemotron", "<TOOLCALL>", _JSON, joint=", ", section="[$CALLS]</TOOLCALL>"),
    _cohere("cohere", "<|START_RESPONSE|>"),  # Command R7B
    _cohere("cohere-2", "<|START_TEXT|>"),
    Form(
        "apertus",
        "<|tools_prefix|>",
        '{"$NAME": $ARGS}',
        "json",
        joint=", ",
        section="[$CALLS]<|tools_suffix|>",
    ),
    Form("gigachat", "<|function_call|>", _JSON, joint="\n"),
    Form("functionary", "<function=", "$NAME>$ARGS</function>", "json"),
    Form(  # DeepSeek V3.1
        "deepseek",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>$NAME<｜tool▁sep｜>$ARGS<｜tool▁call▁end｜>",
        "json",
        section="$CALLS<｜tool▁calls▁end｜>",
    ),
    Form(  # DeepSeek V3, R1
        "deepseek-r1",
        "<｜tool▁calls▁begin｜>",
        _R1,
        "json",
        joint="\n",
        section="$CALLS<｜tool▁calls▁end｜>",
    ),
    Form(  # Kimi K2
        "kimi",
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>functions.$NAME:{index}<|tool_call_argument_begin|>$ARGS<|tool_call_end|>",
        "json",
        section="$CALLS<|tool_calls_section_end|>",
    ),
    Form(
        "solar",
        "<|tool_calls|>",
        "<|tool_call:begin|>{id}<|tool_call:name|>$NAME<|tool_call:args|>$ARGS<|tool_call:end|>",
        "json",
        section="$CALLS",
        alone=True,
        says="<|content|>",
    ),
    Form("llama", '{"name": "', '$NAME", "parameters": $ARGS}', alone=True),  # Llama 3
    Form(
        "gpt-oss",
        " to=functions.",
        "$NAME<|channel|>commentary json<|message|>$ARGS",
        "json",
        alone=True,
        says="<|channel|>final<|message|>",
    ),
    Form(  # Gemma 4
        "gemma",
        "<|tool_call>",
        "call:$NAME{$ARGS}<tool_call|>",
        "gemma",
        "$KEY:$VALUE",
        comma=",",
    ),
    Form(  # LFM2
        "lfm",
        "<|tool_call_start|>",
        "$NAME($ARGS)",
        "python",
        "$KEY=$VALUE",
        comma=", ",
        joint=", ",
        section="[$CALLS]<|tool_call_end|>",
    ),
)

FORMS: Final = {form.name: form for form in _ALL}
"""Name of a form -> the form."""


def form_named(name: str) -> Form:
    """The form of a name.

    Raises:
        InvalidArgumentError: There is none.
    """
    if name not in FORMS:
        raise InvalidArgumentError("tool_form", name, f"use one of {', '.join(['auto', *FORMS])}")
    return FORMS[name]
