"""Chat templates written for the tests, each with one habit of a template that people use."""

from __future__ import annotations

from typing import Final

HEAD: Final = "<|im_start|>{{ m.role }}\n"
END: Final = "<|im_end|>\n"
ASKED: Final = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OFFER: Final = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
)
CALL: Final = "<tool_call>{{ c.function | tojson }}</tool_call>"
CALLS: Final = "{% for c in m.tool_calls or [] %}" + CALL + "{% endfor %}"


def chat(turn: str, before: str = OFFER, behind: str = ASKED) -> str:
    """A template that writes one turn after the other."""
    return before + "{% for m in messages %}" + turn + "{% endfor %}" + behind


def turn(content: str = "{{ m.content }}", calls: str = CALLS) -> str:
    return HEAD + content + calls + END


CONVERSATIONS: Final[dict[str, str]] = {
    "nothing odd": chat(turn()),
    "no tools": chat(HEAD + "{{ m.content }}" + END, before=""),
    "system first or never": chat(
        "{% if m.role != 'system' or loop.first %}" + turn() + "{% endif %}"
    ),
    "late system refused": chat(
        "{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
        + turn()
    ),
    "system text last": chat(
        "{% if m.role != 'system' %}" + HEAD
        + "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
        "{% endif %}{{ m.content }}" + CALLS + END + "{% endif %}"
    ),
    "user first": chat(
        "{% if loop.first and m.role not in ('user', 'system') %}{{ raise_exception('user') }}"
        "{% endif %}" + turn()
    ),
    "no system, taking turns": chat(
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role == 'system' %}"
        "{{ raise_exception('alternate') }}{% endif %}" + turn("{{ m.content | trim }}", ""),
        before="",
    ),
    "ids of nine letters": chat(
        "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
        "{{ raise_exception('nine') }}{% endif %}{% endfor %}"
        "{% if m.role == 'tool' and m.tool_call_id | length != 9 %}"
        "{{ raise_exception('nine') }}{% endif %}" + turn()
    ),
    "first call only": chat(
        turn(calls="{% if m.tool_calls %}{% set c = m.tool_calls[0] %}" + CALL + "{% endif %}")
    ),
    "one call a turn": chat(
        "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one') }}"
        "{% endif %}" + turn()
    ),
    "tools left out": chat(turn(), before="{% if tools %}{% endif %}"),
    "calls left out": chat(turn(calls="") + "{# tool_calls #}"),
    "no text beside calls": chat(
        turn("{% if not m.tool_calls %}{{ m.content }}{% endif %}")
    ),
    "text behind calls": chat(HEAD + CALLS + "{{ m.content }}" + END),
    "arguments as text": chat(
        turn(
            calls="{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name + ': ' "
            "+ c.function.arguments }}</tool_call>{% endfor %}"
        )
    ),
    "arguments as they come": chat(
        turn(
            calls="{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}: "
            "{{ c.function.arguments }}</tool_call>{% endfor %}"
        )
    ),
    "arguments one by one": chat(
        turn(
            calls="{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
            "{% for k, v in c.function.arguments | items %}<arg>{{ k }}={{ v if v is string "
            "else v | tojson }}</arg>{% endfor %}</tool_call>{% endfor %}"
        )
    ),
    "results as JSON": chat(
        "{% if m.role == 'tool' %}" + turn("{{ m.content | tojson }}", "")
        + "{% else %}" + turn() + "{% endif %}"
    ),
    "a list of tools": chat(turn(), before="{% for t in tools %}{{ t | tojson }}{% endfor %}"),
    "a variable of its own": chat(turn(), before=OFFER + "{{ 'Today is ' + day }}\n"),
    "outside the sandbox": chat(
        turn(calls="{% set all = [] %}{% for c in m.tool_calls or [] %}"
             "{% set _ = all.append(c) %}" + CALL + "{% endfor %}")
    ),
}  # fmt: skip
"""By what they do with a conversation."""

SPECIAL: Final = ("<|im_start|>", "<|im_end|>")
ADDED: Final = ("<tool_call>", "</tool_call>", "<think>", "</think>")

_REASONING: Final = (
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
)


def asking(behind: str) -> str:
    return "{% if add_generation_prompt %}<|im_start|>assistant\n" + behind + "{% endif %}"


STARTS: Final[dict[str, tuple[str, str]]] = {
    "no thoughts": (chat(turn()), ""),
    "an open block": (
        chat(turn("{{ m.content.split('</think>')[-1] }}"), behind=asking("<think>\n")),
        "<think>\n\n</think>\n\n",
    ),
    "an open block, closed in its own way": (
        chat(turn(_REASONING + "{{ '\n' + m.content }}"), behind=asking("<think>")),
        "<think></think>\n",
    ),
    "a phrase": (
        chat(
            turn("{% if m.thinking %}{{ m.thinking }}\n[ANSWER]\n{% endif %}{{ m.content }}"),
            behind=asking("Let me think.\n"),
        ),
        "Let me think.\n\n[ANSWER]\n",
    ),
    "opened by the model": (chat(turn(_REASONING + "{{ m.content }}")), "<think></think>"),
    "a switch": (
        chat(
            turn(),
            behind=asking(
                "{% if enable_thinking is defined and not enable_thinking %}"
                "<think>\n\n</think>\n\n{% endif %}"
            ),
        ),
        "<think>\n\n</think>\n\n",
    ),
    "a switch with a word": (
        chat(
            turn(),
            behind=asking("{{ '</think>' if reasoning_effort == 'none' else '<think>' }}"),
        ),
        "</think>",
    ),
    "a switch that is off": (
        chat(turn(), behind=asking("<think>{% if not thinking %}</think>{% endif %}")),
        "<think></think>",
    ),
    "a line behind the block": (
        chat(
            turn("<think></think>\n{{ m.content }}"),
            behind=asking("<think>{% if not thinking %}</think>{% endif %}"),
        ),
        "<think></think>\n",
    ),
    "a header": (
        chat(
            "{% if m.role == 'assistant' %}<|im_start|>assistant{% if m.thinking %}<|channel|>"
            "thoughts<|message|>{{ m.thinking }}<|im_end|>\n<|im_start|>assistant{% endif %}"
            "<|channel|>final<|message|>{{ m.content }}" + END
            + "{% else %}" + turn() + "{% endif %}",
            behind="{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
        ),
        "<|channel|>final<|message|>",
    ),
    "a header behind the block": (
        chat(
            turn("{% if m.role == 'assistant' %}[ANSWER]{% endif %}{{ m.content }}"),
            behind=asking("[THINK]{% if not thinking %}[/THINK]{% endif %}"),
        ),
        "[THINK][/THINK][ANSWER]",
    ),
    "a block in every answer": (
        chat(turn("{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}")),
        "<think></think>",
    ),
    "a space": (
        chat("{{ m.role }}: {{ m.content }}\n", before="", behind="assistant:"),
        "assistant:",
    ),
}  # fmt: skip
"""By what their prompts end with, and how they must end."""
