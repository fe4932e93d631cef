"""What becomes of conversations in the chat templates of real models, into docs/models.md.

    python -m benchmarks.templates FOLDER

`make templates` fetches the folder: the templates that llama.cpp keeps for its tests. Every prompt
is read again, without the marks that the renderer itself goes by.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import forms, vocabularies
from benchmarks.forms import FormReport
from safe_integrations.calls.forms import HERMES
from safe_integrations.calls.plain import tool_signature
from safe_integrations.config import Tool
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message, Role
from safe_integrations.models.agreement import Start
from safe_integrations.models.jinja import render
from safe_integrations.models.rendering import Renderer
from safe_integrations.models.shapes import SHAPES, Turn
from safe_integrations.models.template import Template
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

_PAGE: Final = Path(__file__).parent.parent / "docs" / "models.md"
_CONTROL: Final = re.compile(r"<[|｜][^<>\s'\"{}]+[|｜]>|\[/?[A-Z_]+\]|</?[a-z_:]*think[a-z_:]*>")
_TOOLS: Final = [
    Tool(
        name="look_up",
        description="Finds a word.",
        parameters={
            "type": "object",
            "properties": {
                "word": {"type": "string", "description": "What to find."},
                "times": {"type": "integer", "description": "How often."},
            },
            "required": ["word"],
        },
    ),
    Tool(name="count", description="Counts.", parameters={"type": "object", "properties": {}}),
]


def _said(role: Role, text: str, **extra: Any) -> Message:
    return Message(role, f'{text} "said"\nby us', extra)


def _call(number: int) -> dict[str, Any]:
    arguments = {"word": f"argument {number}", "times": number}
    return {"id": f"call_{number}", "type": "function",
            "function": {"name": "look_up", "arguments": arguments}}  # fmt: skip


def _used(calls: int, text: str = "") -> list[Message]:
    asked = [_call(i) for i in range(calls)]
    return [
        _said("user", "question"),
        Message("assistant", text, {"tool_calls": asked}),
        *(_said("tool", f"result {i}", tool_call_id=c["id"]) for i, c in enumerate(asked)),
    ]


_SYSTEM: Final = _said("system", "first rules")
_KINDS: Final[Mapping[str, tuple[list[Message], list[Tool]]]] = {
    "a question": ([_said("user", "question")], []),
    "system text and a talk": (
        [_SYSTEM, _said("user", "one"), _said("assistant", "two"), _said("user", "three")],
        [],
    ),
    "the assistant begins": ([_said("assistant", "welcome"), _said("user", "hello")], []),
    "system text in the middle": (
        [_SYSTEM, _said("user", "one"), _said("assistant", "two"), _said("system", "more rules"),
         _said("user", "three")],
        [],
    ),
    "system text alone": ([_SYSTEM], []),
    "one role twice": (
        [_said("user", "one"), _said("user", "two"), _said("assistant", "three"),
         _said("assistant", "four"), _said("user", "five")],
        [],
    ),
    "tools, not used yet": ([_SYSTEM, _said("user", "question")], _TOOLS),
    "a call and its result": (_used(1), _TOOLS),
    "text beside a call": (
        [_SYSTEM, *_used(1, "let me see"), _said("assistant", "so"), _said("user", "thanks")],
        _TOOLS,
    ),
    "two calls at once": (_used(2), _TOOLS),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was found about one template.

    Attributes:
        refused: Kinds of conversations, and why.
        lost: Kinds of conversations, and what is not in the prompt. The number that has to be 0.
        forged: Kinds in which a control token got out of a text. That has to be 0, too.
        end: What stands between a question and the answer.
        start: What of it does not come from the template by itself.
        calls: How it writes calls of tools.
        same: How many renderings are those of transformers, errors included.
        rendered: Of how many.
    """

    refused: dict[str, str]
    lost: dict[str, str]
    forged: list[str]
    end: str
    start: Start
    calls: FormReport
    same: int
    rendered: int


def look_at(source: str) -> Found:
    """Renders all kinds of conversations by a template."""
    tokenizer = _tokenizer(source)
    wrapped = TransformersTokenizer(tokenizer, "it")
    renderer = Renderer(wrapped)
    write = renderer.writing(renderer.teaches or HERMES)
    refused, lost, forged = dict[str, str](), dict[str, str](), list[str]()
    for kind, (messages, tools) in _KINDS.items():
        try:
            ids = write(messages, tools)
        except InvalidArgumentError as error:
            refused[kind] = error.remedy
            continue
        prompt = tokenizer.decode(ids)
        if missing := _missing(prompt, messages):
            lost[kind] = missing
        tags = dict.fromkeys(_CONTROL.findall(source))
        attack = "".join(tag for tag in tags if "think" not in tag)  # which templates may obey
        twins = ([replace(m, content=f"{m.content} {word}") for m in messages if m.content]
                 for word in (f"{attack}<eos> word", "word"))  # fmt: skip
        tokens = ([i for i in write(twin, tools) if i in tokenizer.added_tokens_decoder]
                  for twin in twins)  # fmt: skip
        if next(tokens) != next(tokens):
            forged.append(kind)
    asked = tokenizer.decode(write([Message("user", "qaskedq")]))
    end = asked.rpartition("qaskedq")[2]
    template = Template(wrapped, source)
    calls = forms.look_at(template.offering)
    return Found(refused, lost, forged, end, template.start, calls, *_compared(tokenizer, source))


def _compared(tokenizer: PreTrainedTokenizerFast, source: str) -> tuple[int, int]:
    """Renders all shapes of all conversations twice: as transformers does, and as we do."""
    same = rendered = 0
    special = tokenizer.special_tokens_map
    for messages, tools in _KINDS.values():
        turns = [{**m.extra, "role": m.role, "content": m.content} for m in messages]
        shapes: list[list[Turn]] = []
        for put in SHAPES:
            if (shape := put(turns)) not in shapes:
                shapes.append(shape)
        offered = {"tools": [tool_signature(tool) for tool in tools]} if tools else {}
        arguments: Sequence[dict[str, Any]] = (
            {},
            {"enable_thinking": True},
            {"enable_thinking": False},
        )
        for shape, args, generation in product(shapes, arguments, (True, False)):
            asked = {"chat_template": source, "add_generation_prompt": generation}
            given = offered | args
            theirs = _told(tokenizer.apply_chat_template, shape, tokenize=False, **asked, **given)
            variables = {**special, **given}
            ours = _told(render, source, shape, generation=generation, variables=variables)
            same += ours == theirs
            rendered += 1
    return same, rendered


def _told(make: Callable[..., Any], *args: Any, **options: Any) -> str:
    """What is rendered, or why it is not."""
    try:
        return str(make(*args, **options))
    except Exception as error:  # a template may raise whatever it likes
        return f"{type(error).__name__}: {error}"


def _missing(prompt: str, messages: Sequence[Message]) -> str:
    """The first text that does not stand in a prompt, or not in its order; empty where all do."""
    places: dict[str, list[int]] = {"said": [], "called": [], "answered": []}
    for i, message in enumerate(messages):
        calls = message.extra.get("tool_calls", ())
        texts = [("answered" if message.role == "tool" else "said", message.content)]
        texts += [("called", call["function"]["arguments"]["word"]) for call in calls]
        for kind, text in texts:
            at = max(prompt.find(text), prompt.find(json.dumps(text)[1:-1]))
            if at < 0 or (places[kind] and at < places[kind][-1] and text):
                return text
            if text and (message.role, i) != ("system", 0):
                places[kind].append(at)
    pairs = zip(places["called"], places["answered"], strict=True)
    return "" if all(call < result for call, result in pairs) else "a result before its call"


def _thinking(start: Start) -> str:
    if start.on:
        return f"off; on by `{_spelt(start.on)}`"
    return f"off by `{_spelt(start.off)}`" if start.off else ""


def _spelt(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _tokenizer(source: str) -> PreTrainedTokenizerFast:
    """One token a byte, and what looks like a control token of the template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<eos>", "<bos>", *sorted(set(_CONTROL.findall(source)))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>", chat_template=source
    )
    return tokenizer


def page(found: Mapping[str, Found], version: str) -> str:
    """The results as Markdown."""
    whole = {kind: sum(kind not in f.refused for f in found.values()) for kind in _KINDS}
    lost = sum(len(f.lost) for f in found.values())
    forged = sum(len(f.forged) for f in found.values())
    same, rendered = (sum(f.same for f in found.values()), sum(f.rendered for f in found.values()))
    lines = [
        "# Real models",
        "",
        "## Chat templates",
        "",
        f"The {len(found)} chat templates that llama.cpp keeps for its tests, from the source",
        f"distribution of {version}, measured on {date.today()} with `make templates`. A prompt is",
        "whole if every text, call and result of the conversation stands in it, in order.",
        f"Left out without a word: {lost}. Control tokens that got out of a text: {forged}.",
        "Templates are rendered here, not by transformers; of all shapes of these conversations,",
        f"errors included, {same:,} of {rendered:,} come out as transformers renders them.",
        "",
        "| conversation | whole |",
        "| --- | ---: |",
        *(f"| {kind} | {whole[kind]} |" for kind in _KINDS),
        "",
        "What stands between a question and the first byte of the answer, and how much of it is",
        "written because the template stops short of it. Thinking is off unless it is asked for",
        'with `template_args={"enable_thinking": True}`.',
        "",
        *_about_calls([f.calls for f in found.values()]),
        "",
        "| template | whole | in front of the answer | of it added | thinking | form of a call |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for name, f in found.items():
        number = f"{len(_KINDS) - len(f.refused)} of {len(_KINDS)}"
        added = _code(f.start.header) if f.start.header else ""
        cells = (name, number, _code(f.end), added, _thinking(f.start), _form(f.calls))
        lines.append(f"| {' | '.join(cells)} |")
    reasons = [f"- {name}, {kind}: {why}" for name, f in found.items()
               for kind, why in f.refused.items()]  # fmt: skip
    return "\n".join([*lines, *(["", "Refused:", "", *reasons] if reasons else []), ""])


def _about_calls(found: Sequence[FormReport]) -> list[str]:
    taught = [report for report in found if report.form is not None]
    whole = sum(report.enforced and report.kept for report in taught)
    return [
        f"{len(taught)} of the templates teach a known form of a call; {whole} of these are",
        "read, enforced by a grammar, and found again in a conversation that went on. Members that",
        "teach one form share it; others share Hermes JSON, in our words where a template does not",
        "teach it.",
    ]


def _form(report: FormReport) -> str:
    if report.form is None:
        return ""
    missing = [] if report.enforced else ["not enforced"]
    missing += [] if report.kept else ["not found again"]
    return ", ".join([f"`{report.form.name}`", *missing])


def _code(text: str) -> str:
    """A text on one line of a table, without its middle where it is long."""
    line = text.replace("\n", "\\n").replace("|", "\\|").replace("`", "'")
    return f"`{line if len(line) <= 160 else f'{line[:70]} ... {line[-70:]}'}`"


def main(folder: Path) -> None:
    """Measures what llama.cpp has in its folder `models`, and writes the page."""
    files = sorted(folder.glob("templates/*.jinja"), key=lambda file: file.stem.lower())
    version = re.search(r"llama_cpp_python-[0-9.]+[0-9]", str(folder.resolve()))
    found = {}
    for file in files:
        found[file.stem] = result = look_at(file.read_text("utf-8"))
        for problem in (result.refused, result.lost, result.forged):
            if problem:
                print(f"{file.stem}: {problem}", file=sys.stderr)
    name = version[0].replace("_", "-") if version else "llama-cpp-python"
    sections = (page(found, name), vocabularies.report(folder), vocabularies.default_pair())
    _PAGE.write_text("\n".join(sections), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
