"""The next byte behind a prompt is the first of the answer, whatever the template does about it."""

from __future__ import annotations

from functools import cache

import pytest
from quirks import ADDED, SPECIAL, STARTS, asking, chat, turn
from toy_models import renderer, toy_tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.templates import look_at
from safe_integrations.config import Tool
from safe_integrations.messages import Message

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
    prompt = tokenizer_of(name).decode(renderer(tokenizer_of(name))(messages, tools))
    said = "" if template.startswith("{% for") and name == "a space" else "<|im_start|>assistant"
    assert prompt.endswith(f"{said}\n{end}") or prompt.endswith(f"{said}{end}"), prompt


@pytest.mark.parametrize("name", STARTS)
def test_what_the_prompt_says_before_the_answer_are_control_tokens(name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = renderer(tokenizer)(ASKED)
    assert ids == tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["an open block", "a switch that is on", "opened by the model"])
def test_thinking_that_is_asked_for_starts_where_the_template_has_it(name: str) -> None:
    switch = "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
    template = (
        STARTS[name][0] if name in STARTS else chat(turn(), behind=asking(f"<think>{switch}"))
    )
    tokenizer = toy_tokenizer(400, template, SPECIAL, ADDED)
    ids = renderer(tokenizer)(ASKED, (), {"enable_thinking": True})
    turns = [{"role": "user", "content": "Hi"}]
    assert ids == tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, enable_thinking=True
    )
    assert ids != renderer(tokenizer)(ASKED)


def test_arguments_of_the_caller_come_first() -> None:
    behind = "{{ reasoning_effort }}{{ '' if reasoning_effort == 'none' else '<think>' }}"
    template = chat(turn(), behind=asking(behind))
    tokenizer = toy_tokenizer(400, template, SPECIAL, ADDED)
    render = renderer(tokenizer)
    assert tokenizer.decode(render(ASKED)).endswith("\nnone")
    assert tokenizer.decode(render(ASKED, (), {"reasoning_effort": "low"})).endswith("\nlow<think>")


REASONS = {
    "an open block": ("<think>\n", "</think>", "\n</think>\n\n"),
    "an open block, closed in its own way": ("<think>", "</think>", "</think>\n"),
    "opened by the model": ("<think>", "</think>", "</think>"),
    "a switch": ("<think>\n", "</think>", "\n</think>\n\n"),
    "a switch with a word": ("<think>", "</think>", "\n</think>\n\n"),
    "a switch that is off": ("<think>", "</think>", "\n</think>\n\n"),
    "a line behind the block": ("<think>", "</think>", "\n</think>\n\n"),
    "a header": (
        "<|channel|>thoughts<|message|>",
        "<|im_end|>",
        "<|im_end|>\n<|im_start|>assistant<|channel|>final<|message|>",
    ),
    "a header behind the block": ("[THINK]", "[/THINK]", "\n[/THINK]\n\n"),
}
"""How reasoning begins, which tag ends it, and what leads from it to the answer."""


@pytest.mark.parametrize("messages", [ASKED, TOLD])
@pytest.mark.parametrize("name", STARTS)
def test_reasoning_starts_and_ends_as_the_template_has_it(
    name: str, messages: list[Message]
) -> None:
    tokenizer = tokenizer_of(name)
    found = renderer(tokenizer).reason(messages)
    assert found.own == (name in REASONS)
    begin, end, closing = REASONS.get(name, ("<think>\n", "</think>", "\n</think>\n\n"))
    prompt = tokenizer.decode(found.prompt)
    assert prompt.endswith(begin) and prompt.count("Hi") == 1
    assert (found.end, tokenizer.decode(found.closing)) == (end, closing)
    assert list(found.closing) == tokenizer(closing, add_special_tokens=False)["input_ids"]


def test_the_table_of_real_templates_tells_what_it_finds() -> None:
    found = look_at(STARTS["an open block"][0])
    assert not found.refused and not found.lost and not found.forged
    assert found.same == found.rendered > 0
    assert found.end.endswith(STARTS["an open block"][1])
    assert found.start.header == "\n</think>\n\n"
    assert len(look_at(chat(turn("{{ m.content[:8] }}"))).refused) == 10
