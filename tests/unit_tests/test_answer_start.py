"""The next byte behind a prompt is the first of the answer, whatever the template does about it."""

from __future__ import annotations

from functools import cache

import pytest
from quirks import ADDED, SPECIAL, STARTS, asking, chat, turn
from toy_models import toy_tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.templates import look_at
from safe_integrations.config import Tool
from safe_integrations.messages import Message
from safe_integrations.models.rendering import Renderer

ASKED = [Message("user", "Hi")]
TOLD = [*ASKED, Message("assistant", "Ho"), Message("user", "And now?")]
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": {}}}
USED = [*ASKED, Message("assistant", "", {"tool_calls": [CALL]}), Message("tool", "22")]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return toy_tokenizer(400, STARTS[name][0], SPECIAL, ADDED)


@pytest.mark.parametrize("messages", [ASKED, TOLD, USED, [Message("system", "Be kind.")]])
@pytest.mark.parametrize("name", STARTS)
def test_the_answer_starts_behind_the_prompt(name: str, messages: list[Message]) -> None:
    template, end = STARTS[name]
    tools = [Tool(name="look_up")] if messages == USED else []
    prompt = tokenizer_of(name).decode(Renderer(tokenizer_of(name), "toy")(messages, tools))
    said = "" if template.startswith("{% for") and name == "a space" else "<|im_start|>assistant"
    assert prompt.endswith(f"{said}\n{end}") or prompt.endswith(f"{said}{end}"), prompt


@pytest.mark.parametrize("name", STARTS)
def test_what_the_prompt_says_before_the_answer_are_control_tokens(name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = Renderer(tokenizer, "toy")(ASKED)
    assert ids == tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["an open block", "a switch that is on", "opened by the model"])
def test_thinking_that_is_asked_for_starts_where_the_template_has_it(name: str) -> None:
    switch = "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
    template = (
        STARTS[name][0] if name in STARTS else chat(turn(), behind=asking(f"<think>{switch}"))
    )
    tokenizer = toy_tokenizer(400, template, SPECIAL, ADDED)
    ids = Renderer(tokenizer, "toy")(ASKED, (), {"enable_thinking": True})
    turns = [{"role": "user", "content": "Hi"}]
    assert ids == tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, enable_thinking=True
    )
    assert ids != Renderer(tokenizer, "toy")(ASKED)


def test_arguments_of_the_caller_come_first() -> None:
    behind = "{{ reasoning_effort }}{{ '' if reasoning_effort == 'none' else '<think>' }}"
    template = chat(turn(), behind=asking(behind))
    tokenizer = toy_tokenizer(400, template, SPECIAL, ADDED)
    render = Renderer(tokenizer, "toy")
    assert tokenizer.decode(render(ASKED)).endswith("\nnone")
    assert tokenizer.decode(render(ASKED, (), {"reasoning_effort": "low"})).endswith("\nlow<think>")


def test_the_table_of_real_templates_tells_what_it_finds() -> None:
    found = look_at(STARTS["an open block"][0])
    assert not found.refused and not found.lost and not found.forged
    assert found.end.endswith(STARTS["an open block"][1])
    assert found.start.header == "\n</think>\n\n"
    assert len(look_at(chat(turn("{{ m.content[:8] }}"))).refused) == 10
