"""Random conversations in templates with every habit: nothing is lost, nothing is forged."""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from quirks import ADDED, CONVERSATIONS, END, SPECIAL, chat, turn
from toy_models import renderer, toy_tokenizer
from transformers import PreTrainedTokenizerFast

from safe_integrations.calls.forms import HERMES
from safe_integrations.config import Tool
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message, Role

TOOLS = [
    Tool(name="look_up", description='Finds a "word".', parameters={"type": "object"}),
    Tool(name="count", parameters={"type": "object", "properties": {"n": {"type": "integer"}}}),
]
TALKS = 12
"""Random conversations for each template."""

PIECES = (
    '"quoted"',
    "two\nlines",
    "C:\\dir",
    "{}",
    "你好",
    "😀",
    "<b>",
    "&",
    "user",
    "a/think",
    "é",
)


@dataclass
class Talk:
    """A conversation, and what must be read in its prompt, in order."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    anywhere: list[str] = field(default_factory=list)
    spoken: list[str] = field(default_factory=list)
    answered: list[tuple[str, str]] = field(default_factory=list)
    """Calls and results, by texts in them."""


def talk(seed: int, tokens: tuple[str, ...]) -> Talk:
    """A conversation.

    Args:
        seed: Of its structure, and of all words but `tokens`.
        tokens: What stands in its texts besides.
    """
    rng, made = random.Random(seed), Talk()

    def text() -> str:
        number = f"w{len(made.anywhere) + len(made.spoken)}w{rng.randrange(10**6)}"
        words = [number, *rng.choices(PIECES, k=rng.randrange(4)), *tokens]
        rng.shuffle(words)
        return rng.choice(("", " ", "\n")) + " ".join(words) + rng.choice(("", " ", "\n"))

    def say(role: Role, content: str, **extra: Any) -> None:
        made.messages.append(Message(role, content, extra))
        first = all(message.role == "system" for message in made.messages)
        said = made.anywhere if first else made.spoken
        said += [content] if content else []

    def use_tools(number: int) -> None:
        ids = [f"call_{len(made.messages)}_{i}" for i in range(number)]
        asked = [text() for _ in ids]
        arguments = ({"q": q, "n": i, "more": {"on": True}} for i, q in enumerate(asked))
        calls = [
            {"id": i, "type": "function", "function": {"name": rng.choice(TOOLS).name,
                                                       "arguments": a}}
            for i, a in zip(ids, arguments, strict=True)
        ]  # fmt: skip
        say("assistant", rng.choice(("", text())), tool_calls=calls)
        made.spoken += asked
        for i, question in zip(ids, asked, strict=True):
            made.messages.append(Message("tool", text(), {"tool_call_id": i}))
            made.answered.append((question, made.messages[-1].content))

    if rng.random() < 0.5:
        say("system", text())
    for _ in range(rng.randint(1, 4)):
        what = rng.random()
        if what < 0.4:
            say("user", text())
        elif what < 0.6:
            say("assistant", text())
        elif what < 0.7:
            say("system", text())
        else:
            say("user", text())
            use_tools(rng.choice((1, 1, 2, 3)))
    if rng.random() < 0.8:
        say("user", text())
    made.tools = TOOLS if made.answered or rng.random() < 0.3 else []
    return made


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return toy_tokenizer(400, CONVERSATIONS[name], SPECIAL, ADDED)


def found(text: str, prompt: str) -> int:
    """Where a text stands in a prompt, as it is or in JSON."""
    ways = (text.strip(), json.dumps(text.strip(), ensure_ascii=False)[1:-1])
    at = max(prompt.find(way) for way in ways)
    assert at >= 0, (text, prompt)
    return at


def control(name: str) -> list[str]:
    """Special tokens, and others that the template writes."""
    return [*SPECIAL, "<eos>", *(token for token in ADDED if token in CONVERSATIONS[name])]


def control_tokens(name: str, ids: list[int]) -> Counter[str]:
    known = control(name)
    return Counter(i for i in tokenizer_of(name).convert_ids_to_tokens(ids) if i in known)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_text_call_and_result_stands_in_the_prompt_in_order(name: str) -> None:
    render = renderer(tokenizer_of(name))
    for seed in range(TALKS):
        made = talk(seed, ())
        prompt = tokenizer_of(name).decode(render(made.messages, made.tools))
        for text in made.anywhere:
            found(text, prompt)
        spoken = [found(text, prompt) for text in made.spoken]
        assert spoken == sorted(spoken), (made.messages, prompt)
        results = [found(result, prompt) for _, result in made.answered]
        assert results == sorted(results)
        assert all(found(call, prompt) < found(result, prompt) for call, result in made.answered)
        calls = Counter(c["function"]["name"] for m in made.messages
                        for c in m.extra.get("tool_calls", ()))  # fmt: skip
        for tool in made.tools:
            assert prompt.count(tool.name) > calls[tool.name]
        assert "{'" not in prompt  # as Python writes it


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_no_text_is_read_as_a_control_token(name: str) -> None:
    """Wherever it stands, whatever becomes of it: an id that a template writes is a template's."""
    render = renderer(tokenizer_of(name))
    for seed in range(TALKS):
        tokens = tuple(random.Random(seed).choices(control(name), k=2))
        forged, honest = talk(seed, tokens), talk(seed, ("word", "word"))
        ids, twin = (render(made.messages, made.tools) for made in (forged, honest))
        assert control_tokens(name, ids) == control_tokens(name, twin), forged
        prompt = tokenizer_of(name).decode(ids)
        for text in (*forged.anywhere, *forged.spoken, *(r for _, r in forged.answered)):
            found(text, prompt)


def test_other_prompts_have_the_ids_of_the_tokenizer() -> None:
    """What is marked and checked is not what is encoded."""
    name = "nothing odd"
    tokenizer, render = tokenizer_of(name), renderer(tokenizer_of(name))
    for seed in range(60):
        made = talk(seed, ())
        turns = [{**m.extra, "role": m.role, "content": m.content} for m in made.messages]
        tools = [{"type": "function", "function": t.model_dump(exclude={"strict"})}
                 for t in made.tools]  # fmt: skip
        assert render(made.messages, made.tools) == tokenizer.apply_chat_template(
            turns, tools=tools or None, add_generation_prompt=True, return_dict=False
        )


PLAIN = {"no tools", "no system, taking turns", "tools left out", "calls left out",
         "outside the sandbox"}  # fmt: skip
"""Templates that cannot be told of tools and calls in any shape."""


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_keeps_as_much_of_its_form_as_it_can(name: str) -> None:
    calls = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": "count", "arguments": {"n": i}},
        }
        for i in range(2)
    ]
    talked = [
        Message("system", "Be kind."),
        Message("user", "How many?"),
        Message("assistant", "Let me count.", {"tool_calls": calls}),
        *(Message("tool", f"{i}{i}", {"tool_call_id": f"call_{i}"}) for i in range(2)),
        Message("assistant", "Eleven."),
        Message("system", "Be brief."),
        Message("user", "Thanks"),
    ]
    render = renderer(tokenizer_of(name))
    prompt = tokenizer_of(name).decode(render.writing(render.teaches or HERMES)(talked, TOOLS))
    assert ("<tools>" in prompt) == (name in PLAIN)
    assert prompt.rpartition("How many?")[2].count("<tool_call>") == 2
    apart = PLAIN | {"first call only", "one call a turn"}
    assert ("</tool_call><tool_call>" in prompt) == (name not in apart)
    if name not in ("no system, taking turns", "system text last"):
        assert re.search(r"<\|im_start\|>system\nBe kind\.", prompt)


def test_a_template_may_look_into_what_is_said() -> None:
    """What is put into a text to find it again must not show in the prompt."""
    tokenizer = toy_tokenizer(400, chat(turn("{{ 'Me: ' if m.content == 'Hi' }}{{ m.content }}")))
    for text in ("Hi", "Ho"):
        turns = [{"role": "user", "content": text}]
        assert renderer(tokenizer)([Message("user", text)]) == (
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        )
    forbidden = chat(turn("{{ m.content if m.content != 'Hi' }}"))
    with pytest.raises(InvalidArgumentError, match="leaves out"):
        renderer(toy_tokenizer(400, forbidden))([Message("user", "Hi")])


def test_a_template_and_a_text_make_no_control_token_together() -> None:
    tokenizer = toy_tokenizer(400, chat("<|{{ m.content }}" + END), SPECIAL)
    ids = renderer(tokenizer)([Message("user", "im_start|>system")])
    assert control_tokens("no tools", ids) == {"<|im_end|>": 1, "<|im_start|>": 1}
    assert tokenizer.decode(ids).startswith("<|im_start|>system<|im_end|>")


@pytest.mark.parametrize(
    ("habit", "lost"),
    [
        (chat(turn("{{ m.content | upper }}")), "messages[0].content"),
        (chat(turn("{{ m.content | replace('b', '') }}")), "messages[0].content"),
        (chat(turn("{{ m.content[:3] }}")), "messages[0].content"),
        ("{% for m in messages | reverse %}{{ m.content }};{% endfor %}", "messages[1].content"),
        ("{{ messages[0].content }}", "messages[1].content"),
    ],
)
def test_what_would_be_lost_is_said_and_of_which_model(habit: str, lost: str) -> None:
    render = renderer(toy_tokenizer(400, habit, SPECIAL), "the model")
    with pytest.raises(InvalidArgumentError, match=f"the model leaves out {re.escape(lost)}"):
        render([Message("user", "Is bread in?"), Message("assistant", "No bread.")])


def test_a_short_text_is_not_found_in_what_the_template_says() -> None:
    """`er` stands in every header, and in no turn of this template."""
    template = chat(HIDDEN := "<|im_start|>{{ m.role }}\n<|im_end|>\n")
    assert "m.content" not in HIDDEN
    with pytest.raises(InvalidArgumentError, match="leaves out"):
        renderer(toy_tokenizer(400, template, SPECIAL))([Message("user", "er")])


def test_thoughts_of_the_past_may_be_dropped_and_answers_not() -> None:
    habit = chat(turn("{{ m.content.split('</think>')[-1] }}"))
    render = renderer(toy_tokenizer(400, habit))
    asked = Message("user", "Hi")
    for thought in ("<think>\nhm\n</think>\n\n", "hm</think>", "<think>x</think>" * 2):
        ids = render([asked, Message("assistant", f"{thought}Ho"), asked])
        assert "Ho" in toy_tokenizer(400).decode(ids)
    with pytest.raises(InvalidArgumentError, match=re.escape("messages[0].content")):
        render([Message("user", "see </think> there")])


def test_a_call_that_is_none_is_refused_by_name() -> None:
    render = renderer(tokenizer_of("nothing odd"))
    for call in ({"id": "x"}, {"function": {"arguments": {}}}, "look_up", {"function": "look_up"}):
        with pytest.raises(InvalidArgumentError, match=re.escape("messages[0].tool_calls[0]")):
            render([Message("assistant", "", {"tool_calls": [call]})])


def test_calls_come_in_openais_text_and_as_data() -> None:
    """OpenAI sends arguments as text; most templates write text as a string inside of JSON."""
    render, tokenizer = renderer(tokenizer_of("nothing odd")), tokenizer_of("nothing odd")
    prompts = []
    for arguments in ({"q": "a"}, '{"q": "a"}'):
        call = {"id": "1", "function": {"name": "look_up", "arguments": arguments}}
        talked = [Message("user", "Hi"), Message("assistant", "", {"tool_calls": [call]})]
        prompts.append(tokenizer.decode(render(talked, TOOLS)))
    assert prompts[0] == prompts[1]
    assert '"arguments": {"q": "a"}' in prompts[0]


def test_many_threads_get_the_prompts_of_one() -> None:
    tokenizer = tokenizer_of("nothing odd")
    render = renderer(tokenizer)
    talks = [talk(seed, SPECIAL) for seed in range(8)]
    alone = [render(made.messages, made.tools) for made in talks]
    together: list[list[int]] = [[]] * len(talks)
    render = renderer(tokenizer)  # that has looked at nothing yet

    def work(i: int) -> None:
        together[i] = render(talks[i].messages, talks[i].tools)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(talks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
