"""Chat templates in our sandbox: what transformers renders, and no way out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from quirks import CONVERSATIONS, STARTS
from taught import TAUGHT, template
from toy_models import toy_tokenizer

from safe_integrations.models.jinja import names_in, render

ARGUMENTS = {"q": '<b>"é"</b>', "n": [1, None, 2.5]}
CALL = {"id": "call00001", "function": {"name": "f", "arguments": ARGUMENTS}}
FUNCTION = {"name": "f", "description": "Größe <&>", "parameters": {}}
TOOL = {"type": "function", "function": FUNCTION}
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " Hi\n"}],
    [{"role": "system", "content": "é"}, {"role": "user", "content": "Hi", "name": "Ann"}],
    [
        {"role": "user", "content": "Hi", "tool_calls": None},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning": "hm"},
        {"role": "tool", "content": "full", "tool_call_id": "call00001"},
        {"role": "assistant", "content": "<think>a</think>b", "thinking": "hm"},
        {"role": "user", "content": "So?", "reasoning_content": None},
    ],
]

HABITS = {
    "blanks": "  {% if true %}\n  a\n  {% endif %}\n {%- for m in messages +%}  \n{{ m.role }}\n"
    "{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m }}"
    "{% endfor %}",
    "generation": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "JSON": "{{ messages | tojson }}{{ {'b': 1, 'a': '<é>'} | tojson(indent=2, sort_keys=true) }}"
    "{{ tools | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "namespace": "{% set ns = namespace(self=1, b=2) %}{% set ns.b = 3 %}{{ ns.b }}{{ ns['self'] }}"
    "{{ ns.self }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys([1, 2]) }}{{ dict([('a', 1)], b=2) }}",
    "what is there": "{{ tools is defined }}{{ documents is defined }}{{ tools is none }}"
    "{{ add_generation_prompt }}{{ bos_token is defined }}{{ eos_token }}{{ nothing }}",
    "documents": "{% for d in documents %}{{ d.title }}: {{ d.text }}{% endfor %}",
    "an exception": "{{ raise_exception('not today') }}",
    "an error": "{{ messages[0].content.nothing.more }}",
    "no template": "{% if %}",
    "a date": "{{ strftime_now('%Y') }}",
    "out by attributes": "{{ messages.__class__.__mro__ }}",
    "out by format": "{{ '{0.__class__}'.format(messages) }}",
    "out by a namespace": "{{ namespace(__class__=1) }}",
    "out by setting": "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "out by change": "{{ messages.append(1) }}",
    "out by a global": "{{ raise_exception.__globals__ }}",
    "types": "{{ things.number }} {{ things.flag }} {{ things.pair }} {{ things.model }}"
    " {{ things.data }} {{ things.thing }} {{ things.text }}",
}  # fmt: skip


class Model(BaseModel):
    a: int = 1


@dataclass
class Data:
    b: str = "x"


class Text(str):
    def secret(self) -> str:
        return "secret"


class Thing:
    def write(self) -> str:
        return "written"


THINGS = {
    "number": np.float32(0.5), "flag": np.bool_(False), "pair": (1, True), "model": Model(),
    "data": Data(), "thing": Thing(), "text": Text("t"),
}  # fmt: skip
GIVEN: list[dict[str, Any]] = [
    {},
    {"tools": [TOOL], "enable_thinking": False},
    {"documents": [{"title": "T", "text": "<é>"}], "bos_token": "<mine>", "things": THINGS},
    {"documents": ["no dict"]},
]


def told(make: Callable[..., str], *args: Any, **options: Any) -> str:
    """What is rendered, or why it is not."""
    try:
        return make(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


SOURCES = {
    **HABITS,
    **CONVERSATIONS,
    **{name: source for name, (source, _) in STARTS.items()},
    **{f"calls: {form}": template(form) for form in (None, *TAUGHT)},
}
OWN_WORDS = ("ValueError", "TypeError", "SecurityError")


@pytest.mark.parametrize("name", SOURCES)
def test_templates_render_as_transformers_renders_them(name: str) -> None:
    """Errors of a template are the same, too; those of what is handed over have our words."""
    tokenizer, source = toy_tokenizer(300), SOURCES[name]
    for talk, given, generation in product([*TALKS, []], GIVEN, (True, False)):
        asked = {"chat_template": source, "add_generation_prompt": generation, "tokenize": False}
        theirs = told(tokenizer.apply_chat_template, talk, **asked, **given)
        variables = {**tokenizer.special_tokens_map, **given}
        ours = told(render, source, talk, generation=generation, variables=variables)
        if theirs.startswith(OWN_WORDS):
            ours, theirs = (text.partition(":")[0] for text in (ours, theirs))
        assert ours == theirs, (talk, given)


def test_a_template_gets_data_and_no_objects() -> None:
    """A value from outside may have methods that write files."""
    turns = [{"role": "user", "content": "Hi", "thing": Thing(), "text": Text("t")}]
    for source in ("{{ messages[0].thing.write() }}", "{{ messages[0].text.secret() }}"):
        assert "Undefined" in told(render, source, turns, generation=True, variables={})


def test_rendering_changes_nothing_that_is_handed_over() -> None:
    turns = [{"role": "user", "content": "Hi", "reasoning": "hm"}]
    source = "{% set m = messages[0] %}{{ m.thinking }}{{ m.update({'a': 1}) }}"
    assert "SecurityError" in told(render, source, turns, generation=True, variables={})
    assert turns == [{"role": "user", "content": "Hi", "reasoning": "hm"}]


def test_the_variables_that_a_template_asks_for() -> None:
    source = "{% generation %}{{ thinking }}{% endgeneration %}{% for m in messages %}{% break %}"
    assert names_in(source + "{% endfor %}{% set a = 1 %}{{ a }}") == {"thinking", "messages"}
    assert names_in("{% if %}") == set()
