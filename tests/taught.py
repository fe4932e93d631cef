"""Chat templates of our own that teach forms of calls, as real models' templates do."""

from __future__ import annotations

from safe_integrations.calls.forms import FORMS

PARAMETERS = "{% for k, v in f.arguments.items() %}%s{% endfor %}"
VALUE = "{{ v if v is string else v | tojson }}"
PYTHON = "{{ v | string }}"


def each(parameter: str) -> str:
    return PARAMETERS.replace("%s", parameter)


def calls(call: str, joint: str = "") -> str:
    """A template of all calls of a turn."""
    between = f"{{{{ '{joint}' if not loop.last }}}}"
    head = "{% for c in m.tool_calls %}{% set f = c.function %}"
    return f"{head}{call}{between}{{% endfor %}}"


JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
XML = "\n<function={{ f.name }}>\n" + each("<parameter={{ k }}>%s</parameter>\n") + "</function>\n"
GEMMA = """{%- macro value(v) -%}
{%- if v is string -%}<|"|>{{ v }}<|"|>
{%- elif v is mapping -%}{
{%- for k, x in v | dictsort %}{{ k }}:{{ value(x) }}{{ ',' if not loop.last }}{% endfor -%}}
{%- elif v is iterable -%}[
{%- for x in v %}{{ value(x) }}{{ ',' if not loop.last }}{% endfor -%}]
{%- else -%}{{ v | tojson }}{%- endif -%}{%- endmacro -%}"""
DSML = (
    '<｜DSML｜invoke name="{{ f.name }}">\n'
    + each(
        "<｜DSML｜parameter name=\"{{ k }}\" string=\"{{ 'true' if v is string else 'false' }}\">"
        f"{VALUE}</｜DSML｜parameter>\n"
    )
    + "</｜DSML｜invoke>\n"
)
HY = (
    "<arg_key:opensource>{{ k }}</arg_key:opensource>\n"
    f"<arg_value:opensource>{VALUE}</arg_value:opensource>\n"
)
COHERE = (
    "<|START_ACTION|>[\n    "
    + calls(
        '{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", '
        '"parameters": {{ f.arguments | tojson }}}',
        ",\\n    ",
    )
    + "\n]<|END_ACTION|>"
)
TAUGHT = {
    "hermes": calls(f"<tool_call>\n{JSON}\n</tool_call>", "\\n"),
    "function-xml": calls(
        "<tool_call>" + XML.replace("%s", f"\n{PYTHON}\n") + "</tool_call>", "\\n"
    ),
    "seed": calls("<seed:tool_call>" + XML.replace("%s", PYTHON) + "</seed:tool_call>", "\\n"),
    "glm": calls(
        "<tool_call>{{ f.name }}"
        + each(f"<arg_key>{{{{ k }}}}</arg_key><arg_value>{VALUE}</arg_value>")
        + "</tool_call>"
    ),
    "hunyuan": "<tool_calls:opensource>\n"
    + calls(
        "<tool_call:opensource>{{ f.name }}<tool_sep:opensource>\n"
        + each(HY)
        + "</tool_call:opensource>\n"
    )
    + "</tool_calls:opensource>",
    "minimax": "<minimax:tool_call>\n"
    + calls(
        '<invoke name="{{ f.name }}">\n'
        + each(f'<parameter name="{{{{ k }}}}">{VALUE}</parameter>\n')
        + "</invoke>\n"
    )
    + "</minimax:tool_call>",
    "dsml": f"\n\n<｜DSML｜function_calls>\n{calls(DSML)}</｜DSML｜function_calls>",
    "dsml-4": f"\n\n<｜DSML｜tool_calls>\n{calls(DSML)}</｜DSML｜tool_calls>",
    "minicpm": calls(
        '<function name="{{ f.name }}">'
        + each(f'<param name="{{{{ k }}}}">{PYTHON}</param>')
        + "</function>",
        "\\n",
    ),
    "mistral": calls("[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"),
    "mistral-id": calls(
        "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}"
    ),
    "mistral-list": "[TOOL_CALLS] [" + calls(JSON[:-1] + ', "id": "{{ c.id }}"}', ", ") + "]",
    "apriel": f"\n<tool_calls>[{calls(JSON, ', ')}]</tool_calls>",
    "minimax-1": "<tool_calls>\n" + calls(JSON, "\\n") + "\n</tool_calls>",
    "nemotron": f"<TOOLCALL>[{calls(JSON, ', ')}]</TOOLCALL>",
    **dict.fromkeys(("cohere", "cohere-2"), COHERE),
    "solar": "<|tool_calls|>"
    + calls(
        "<|tool_call:begin|>{{ c.id }}<|tool_call:name|>{{ f.name }}"
        "<|tool_call:args|>{{ f.arguments | tojson }}<|tool_call:end|>"
    ),
    "apertus": "<|tools_prefix|>["
    + calls('{"{{ f.name }}": {{ f.arguments | tojson }}}', ", ")
    + "]<|tools_suffix|>",
    "gigachat": calls(f"<|function_call|>{JSON}", "\\n"),
    "functionary": calls("<function={{ f.name }}>{{ f.arguments | tojson }}</function>"),
    "deepseek": "<｜tool▁calls▁begin｜>"
    + calls(
        "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}"
        "<｜tool▁call▁end｜>"
    )
    + "<｜tool▁calls▁end｜>",
    "deepseek-r1": "<｜tool▁calls▁begin｜>"
    + calls(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n"
        "{{ f.arguments | tojson }}\n```<｜tool▁call▁end｜>",
        "\\n",
    )
    + "<｜tool▁calls▁end｜>",
    "kimi": "<|tool_calls_section_begin|>"
    + calls(
        "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>"
        "{{ f.arguments | tojson }}<|tool_call_end|>"
    )
    + "<|tool_calls_section_end|>",
    "llama": calls('{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'),
    "gpt-oss": calls(
        " to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}"
    ),
    "gemma": GEMMA + calls("<|tool_call>call:{{ f.name }}{{ value(f.arguments) }}<tool_call|>"),
    "lfm": "<|tool_call_start|>["
    + calls(
        "{{ f.name }}("
        + each(
            "{{ k }}={{ v | tojson if v is string or v is mapping or v is iterable else v }}"
            "{{ ', ' if not loop.last }}"
        )
        + ")",
        ", ",
    )
    + "]<|tool_call_end|>",
}
"""Form -> how a chat template may write the calls of a turn."""


def template(form: str | None, end: str = "<|im_end|>") -> str:
    """A chat template that teaches a form, or none."""
    body = "{{ m.content }}" if form is None else f"{{{{ m.content }}}}{TAUGHT[form]}"
    said = (
        body
        if form is None
        else f"{{% if m.tool_calls %}}{body}{{% else %}}"
        f"{{{{ '{FORMS[form].says}' if m.role == 'assistant' }}}}{{{{ m.content }}}}{{% endif %}}"
    )
    head = "{% if tools %}Tools: {{ tools | tojson }}{% endif %}" if form else ""
    return (
        f"{head}{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{said}{end}\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
