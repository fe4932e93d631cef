"""Calls of tools: read from what models write, streamed, described as plain text, enforced."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safe_integrations.calls.grammar import constraint_for
from safe_integrations.calls.plain import (
    plain_assistant_call,
    plain_tool_prompt,
    plain_tool_result,
    render_tools_plainly,
)
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import (
    ParsedAnswer,
    ToolCall,
    ToolCallDelta,
    new_call_id,
)
from safe_integrations.config import (
    Choice,
    GenerationConfig,
    Grammar,
    JsonSchema,
    Regex,
    ResponseFormat,
    Tool,
)
from safe_integrations.errors import InvalidArgumentError, MissingDependencyError
from safe_integrations.messages import Message
from safe_integrations.structure.constraint import Cursor
from safe_integrations.testing import ScriptedMember, follows

WEATHER = Tool(
    name="get_weather",
    description="Wetter für eine Stadt",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city"],
    },
)
NESTED = Tool(
    name="größe.setzen",
    parameters={
        "type": "object",
        "properties": {"maß": {"$ref": "#/$defs/Maß"}, "notes": {"type": "array"}},
        "required": ["maß"],
        "$defs": {
            "Maß": {
                "type": "object",
                "properties": {"höhe": {"type": "number"}, "einheit": {"enum": ["cm", "m"]}},
                "required": ["höhe", "einheit"],
                "additionalProperties": False,
            }
        },
    },
)
NOTHING = Tool(name="now")
TOOLS = (WEATHER, NESTED, NOTHING)


def written(name: str, arguments: object, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def tagged(name: str, arguments: object) -> str:
    return f"<tool_call>\n{written(name, arguments)}\n</tool_call>"


def parse(text: str, tools: Iterable[Tool], **options: Any) -> ParsedAnswer:
    """What a stream makes of a whole answer."""
    stream = ToolCallStream(tools, **options)
    stream.push(text)
    stream.finish()
    return stream.answer()


def found(answer: ParsedAnswer) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.arguments) for call in answer.calls]


PARIS = ("get_weather", {"city": "Paris"})
OSLO = ("get_weather", {"city": "Oslo", "days": 3})


# Reading

FORMS = {
    "hermes": (tagged(*PARIS), "", [PARIS]),
    "hermes on one line": (f"<tool_call>{written(*PARIS)}</tool_call>", "", [PARIS]),
    "hermes with text": (f"Let me look.\n\n{tagged(*PARIS)}\n", "Let me look.", [PARIS]),
    "hermes twice": (f"{tagged(*PARIS)}\n{tagged(*OSLO)}", "", [PARIS, OSLO]),
    "text behind": (f"{tagged(*PARIS)}\nOne moment.", "One moment.", [PARIS]),
    "no closing tag": (f"<tool_call>\n{written(*PARIS)}", "", [PARIS]),
    "next call without closing": (
        f"<tool_call>\n{written(*PARIS)}\n{tagged(*OSLO)}",
        "",
        [PARIS, OSLO],
    ),
    "one brace too many": (f"<tool_call>\n{written(*PARIS)}}}\n</tool_call>", "", [PARIS]),
    "parameters": (f"<tool_call>{written(*PARIS, 'parameters')}</tool_call>", "", [PARIS]),
    "arguments first": (
        '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>',
        "",
        [PARIS],
    ),
    "arguments as text": (
        tagged("get_weather", json.dumps({"city": "Paris"})),
        "",
        [PARIS],
    ),
    "no arguments": ('<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    "null arguments": (tagged("now", None), "", [("now", {})]),
    "unknown tool in tags": (tagged("nope", {}), "", [("nope", {})]),
    "raw newline in a string": (
        '<tool_call>{"name": "get_weather", "arguments": {"city": "A\nB"}}</tool_call>',
        "",
        [("get_weather", {"city": "A\nB"})],
    ),
    "llama": (written(*PARIS, "parameters"), "", [PARIS]),
    "llama with type": (
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}',
        "",
        [PARIS],
    ),
    "llama twice": (f"{written(*PARIS)}; {written(*OSLO)}", "", [PARIS, OSLO]),
    "plain": (f"  {written(*PARIS)}\n", "", [PARIS]),
    "plain list": (f"[{written(*PARIS)},\n{written(*OSLO)}]", "", [PARIS, OSLO]),
    "fenced": (f"```json\n{written(*PARIS)}\n```", "", [PARIS]),
    "fenced without language": (f"```\n{written(*PARIS)}\n```\n", "", [PARIS]),
    "mistral": (f"[TOOL_CALLS] [{written(*PARIS)}, {written(*OSLO)}]", "", [PARIS, OSLO]),
    "mistral without space": (f"[TOOL_CALLS][{written(*PARIS)}]", "", [PARIS]),
    "mistral with text": (f"Sure.[TOOL_CALLS] [{written(*PARIS)}]", "Sure.", [PARIS]),
    "unicode": (
        tagged("größe.setzen", {"maß": {"höhe": 1.5, "einheit": "m"}, "notes": ["名前 😀"]}),
        "",
        [("größe.setzen", {"maß": {"höhe": 1.5, "einheit": "m"}, "notes": ["名前 😀"]})],
    ),
    "tags and braces in strings": (
        tagged("get_weather", {"city": '</tool_call> }{ "]<tool_call>\\'}),
        "",
        [("get_weather", {"city": '</tool_call> }{ "]<tool_call>\\'})],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_calls(form: str) -> None:
    text, rest, calls = FORMS[form]
    answer = parse(text, TOOLS)
    assert (answer.text, found(answer), answer.invalid) == (rest, calls, ())


PLAIN = [
    "",
    " \n",
    "  Hello, world.\n",
    '{"city": "Paris"}',
    written("nope", {"city": "Paris"}),
    f"Call it like this: {written(*PARIS)}",
    f"{written(*PARIS)} is how to call it.",
    f"Here:\n```json\n{written(*PARIS)}\n```",
    f"[{written(*PARIS)}, 3]",
    "```python\nprint(1)\n```",
    "[1, 2, 3]",
    '{"name": "get_weather", "arguments": ',
    "a < b, <tool>, <tool_calls>, [TOOL_CALL]",
    '{"name": "get_weather", "arguments": [1]}',
]


@pytest.mark.parametrize("text", PLAIN)
def test_text_that_is_no_call_stays_as_it_is(text: str) -> None:
    assert parse(text, TOOLS) == ParsedAnswer(text)


@pytest.mark.parametrize("form", FORMS)
def test_without_tools_all_text_is_text(form: str) -> None:
    text = FORMS[form][0]
    assert parse(text, ()) == ParsedAnswer(text)


MALFORMED = [  # answer, name, arguments, text of the call, text of the answer, whether cut off
    (
        "<tool_call>get_weather(Paris)</tool_call> ok",
        *(None, "", "get_weather(Paris)", "ok", False),
    ),
    ("<tool_call>{'name': 'f'}</tool_call>", None, "", "{'name': 'f'}", "", False),
    ('<tool_call>{"arguments": {}}</tool_call>', None, "{}", '{"arguments": {}}', "", False),
    ("<tool_call></tool_call>", None, "", "", "", False),
    ("<tool_call>", None, "", "", "", True),
    ("text <tool_call>\n", None, "", "", "text", True),
    ("text [TOOL_CALLS]", None, "", "", "text", True),
    ("[TOOL_CALLS] [", None, "", "", "", True),
    ("[TOOL_CALLS] [{'name': 1}]", None, "", "{'name': 1}]", "", False),
    *[
        (f"<tool_call>{call}{end}", name, arguments, call, "", cut_off)
        for call, name, arguments, end, cut_off in [
            ('{"name": "f", "arguments": [1]}', "f", "[1]", "</tool_call>", False),
            ('{"name": "f", "arguments": 12 }', "f", "12", "</tool_call>", False),
            ('{"name": "f", "arguments": "x y"}', "f", '"x y"', "</tool_call>", False),
            ('{"name": "f", "arguments": {"a": NaN}}', "f", '{"a": NaN}', "</tool_call>", False),
            ('{"name": "f", "arguments": {"a": 01}}', "f", '{"a": 01}', "</tool_call>", False),
            ('{"name": "f", "arguments": {"a": 1}', "f", '{"a": 1}', "\n</tool_call>", False),
            ('{"name": "f", "arguments": {"a": \'b\'}}', "f", '{"a": ', "</tool_call>", False),
            ('{"name": "f", "arguments": {"a": "b', "f", '{"a": "b', "", True),
            ('{"name": "f", "arguments": "{\\"a', "f", '"{\\"a', "", True),
            ('{"name": "f", "arguments":', "f", "", " \n", True),
            ('{"name": "delete", "argum', "delete", "", "", True),
            ('{"name": "delete"', "delete", "", "", True),
            ('{"name": "del', None, "", "", True),
            ('{"arguments": {"a": 1}, "na', None, '{"a": 1}', "", True),
        ]
    ],
]


@pytest.mark.parametrize(("answer", "name", "arguments", "text", "rest", "cut_off"), MALFORMED)
def test_malformed_calls(
    answer: str, name: str | None, arguments: str, text: str, rest: str, cut_off: bool
) -> None:
    """A call cut off before its arguments was once told with all of its text as arguments."""
    parsed = parse(answer, TOOLS)
    (invalid,) = parsed.invalid
    assert (invalid.name, invalid.arguments, invalid.text) == (name, arguments, text)
    assert invalid.cut_off is cut_off
    assert invalid.error
    assert (parsed.text, parsed.calls) == (rest, ())


def test_nesting_beyond_reason_is_no_crash() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    call = f'{{"name": "now", "arguments": {{"a": {deep}}}}}'
    assert parse(call, TOOLS) == ParsedAnswer(call)
    assert len(parse(f"<tool_call>{call}</tool_call>", TOOLS).invalid) == 1


def test_a_malformed_call_does_not_hide_the_next() -> None:
    answer = parse(f"<tool_call>oops</tool_call>\n{tagged(*PARIS)}", TOOLS)
    assert [i.text for i in answer.invalid] == ["oops"]
    assert found(answer) == [PARIS]


def test_ids_are_fresh() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(i.startswith("call_") and len(i) == 29 for i in ids)


# Streaming


def numbered() -> Any:
    numbers = count()
    return lambda: f"call_{next(numbers)}"


def streamed(chunks: Iterable[str], tools: Sequence[Tool] = TOOLS) -> tuple[Any, ...]:
    """All pieces of a stream put together: text, calls by their fragments, and the answer."""
    stream = ToolCallStream(tools, new_id=numbered())
    pieces = [piece for chunk in chunks for piece in stream.push(chunk)] + stream.finish()
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    calls: dict[int, list[Any]] = {}
    for piece in pieces:
        if isinstance(piece, ToolCallDelta):
            if piece.number not in calls:
                assert piece.id is not None and piece.name is not None
                calls[piece.number] = [piece.id, piece.name, ""]
            else:
                assert (piece.id, piece.name) == (None, None)
                assert piece.arguments
            calls[piece.number][2] += piece.arguments
    return text, list(calls.values()), stream.answer()


def objects(text: str) -> list[tuple[int, int]]:
    """Where the JSON objects of a text begin and end."""
    found, at = [], 0
    while (at := text.find("{", at)) >= 0:
        end = json.JSONDecoder(strict=False).raw_decode(text, at)[1]
        found.append((at, end))
        at = end
    return found


def content(text: str) -> str:
    """A text without what stands around calls: tags, a closing tag cut off, fences, separators."""
    text = re.sub(r"<tool_call>|</tool_call>|\[TOOL_CALLS\]|```(json)?|[\s\[\],;]", "", text)
    cut = max(n for n in range(len("</tool_call>")) if text.endswith("</tool_call>"[:n]))
    return text[: len(text) - cut]


@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_cut_off_is_no_call_and_is_not_lost(form: str) -> None:
    """A call that was cut off and taken for a whole one would be carried out with half a path."""
    text = FORMS[form][0]
    whole = parse(text, TOOLS, new_id=numbered()).calls
    spans = objects(text)
    for cut in range(len(text)):
        for chunks in ([text[:cut]], text[:cut]):  # at once, and character by character
            shown, fragments, answer = streamed(chunks)
            assert shown == answer.text
            if not answer.calls and not answer.invalid:
                assert answer.text in (text[:cut], text[:cut].strip())
                continue
            done = [(start, end) for start, end in spans if end <= cut]
            assert answer.calls == whole[: len(done)]
            assert len(answer.invalid) <= 1 and all(call.cut_off for call in answer.invalid)
            for invalid in answer.invalid:
                told = [fragment for fragment in fragments if fragment[0] == invalid.id]
                assert told in ([], [[invalid.id, invalid.name, invalid.arguments]])
            left = text[:cut]
            for start, end in reversed(done):
                left = left[:start] + left[end:].removeprefix("}")
            kept = answer.text + "".join(call.text for call in answer.invalid)
            assert content(left) == content(kept)


@pytest.mark.parametrize("form", FORMS)
def test_the_pieces_of_a_call_are_what_the_model_wrote(form: str) -> None:
    text = FORMS[form][0]
    for chunks in ([text], text):
        _, fragments, answer = streamed(chunks)
        assert [json.loads(arguments) for _, _, arguments in fragments] == [
            call.arguments for call in answer.calls
        ]
        if form not in ("raw newline in a string", "arguments as text"):
            assert all(arguments in text or arguments == "{}" for _, _, arguments in fragments)


def test_the_arguments_of_plain_json_are_what_the_model_wrote() -> None:
    """They were once written anew: 1e400 became Infinity, which is no JSON."""
    arguments = '{"a":1e400, "b" : [ 1.0e2]}'
    _, fragments, answer = streamed([f'{{"name": "now", "parameters": {arguments}}}'])
    assert [fragment[2] for fragment in fragments] == [arguments]
    assert answer.calls[0].arguments == {"a": float("inf"), "b": [100.0]}


def test_plain_json_with_the_arguments_first_is_a_call() -> None:
    """A name among the arguments was once taken for the tool's."""
    call = '{"arguments": {"name": "Bob"}, "name": "now"}'
    assert found(parse(call, TOOLS)) == [("now", {"name": "Bob"})]
    assert streamed(call)[2].text == ""


SNIPPETS = st.sampled_from(
    [text for text, _, _ in FORMS.values()]
    + PLAIN
    + ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "{", "}", '"', "\\", "```", "\n", " ", "<"]
    + ["é", "text", '{"name": "get_weather"', ', "arguments": {"a": ', "]", ",", "]", "x", "{}"]
)


@given(st.lists(SNIPPETS, max_size=6).map("".join), st.data())
@example("<tool_call>{x</tool_call><tool_call>", None)
@example(f"{tagged(*PARIS)} \n x \n {tagged(*PARIS)} y \n", None)
@example(f"[TOOL_CALLS] [{written(*PARIS)}] \n x \n [TOOL_CALLS] y", None)
def test_how_text_is_cut_does_not_matter(text: str, data: st.DataObject | None) -> None:
    whole = parse(text, TOOLS, new_id=numbered())
    cuts = range(len(text) + 1)
    if data is not None:
        cuts = [0, *sorted(data.draw(st.sets(st.sampled_from(range(len(text) + 1))))), len(text)]
    shown, fragments, answer = streamed(text[a:b] for a, b in zip(cuts, cuts[1:], strict=False))
    assert answer == whole
    assert shown == whole.text
    valid = {call.id: call for call in whole.calls}
    for call_id, name, arguments in fragments:
        if call_id in valid:
            assert valid.pop(call_id) == ToolCall(call_id, name, json.loads(arguments))
    assert not valid


@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)
    ),
    st.text(),
    st.sampled_from([True, False]),
)
def test_any_arguments_come_back(arguments: dict[str, Any], before: str, ascii: bool) -> None:
    call = json.dumps({"name": "now", "arguments": arguments}, ensure_ascii=ascii)
    answer = parse(f"x{before}\n<tool_call>\n{call}\n</tool_call>", TOOLS)
    if "[TOOL_CALLS]" not in before and "<tool_call>" not in before:
        assert found(answer) == [("now", arguments)]


def test_text_streams_at_once_but_for_a_possible_tag() -> None:
    stream = ToolCallStream(TOOLS)
    assert stream.push("Hello") == ["Hello"]
    assert stream.push(" <tool") == []
    assert stream.push("box>!") == [" <toolbox>!"]
    assert stream.push(" ") == []
    assert stream.finish() == [" "]


def test_arguments_stream_as_they_are_written() -> None:
    stream = ToolCallStream(TOOLS, new_id=numbered())
    assert stream.push('<tool_call>\n{"name": "get_wea') == []
    assert stream.push('ther", "arguments": ') == []
    assert stream.push('{"city": "Pa') == [
        ToolCallDelta(0, "call_0", "get_weather", '{"city": "Pa')
    ]
    assert stream.push("ris") == [ToolCallDelta(0, None, None, "ris")]
    assert stream.push('"}}\n</tool_call>') == [ToolCallDelta(0, None, None, '"}')]
    assert stream.finish() == []
    assert stream.answer().calls == (ToolCall("call_0", *PARIS),)


def test_plain_json_that_cannot_be_a_call_is_not_held_back() -> None:
    stream = ToolCallStream(TOOLS)
    assert stream.push('{"na') == []
    assert stream.push('mes": 1') == ['{"names": 1']
    stream = ToolCallStream(TOOLS)
    assert stream.push('{"name": "nope"') == ['{"name": "nope"']


# Plain text


def test_the_plain_prompt_names_tools_and_form() -> None:
    prompt = plain_tool_prompt(TOOLS)
    assert "<tools>" in prompt
    assert '"name": "get_weather", "description": "Wetter für eine Stadt"' in prompt
    assert '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}' in prompt


def openai_call(call_id: str, name: str, arguments: object) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_plain_call_is_read_back() -> None:
    calls = [openai_call("1", *PARIS), openai_call("2", "now", "{}"), {"name": "now"}]
    text = plain_assistant_call("Wait.", calls)
    assert text.startswith("Wait.\n<tool_call>\n")
    answer = parse(text, TOOLS)
    assert (answer.text, found(answer)) == ("Wait.", [PARIS, ("now", {}), ("now", {})])


def test_a_conversation_with_tools_becomes_plain() -> None:
    calls = [openai_call("1", *PARIS), openai_call("2", "now", "{}")]
    plain = render_tools_plainly(
        [
            Message("system", "Be brief."),
            Message("user", "Weather?", {"name": "Ann"}),
            Message("assistant", "", {"tool_calls": calls}),
            Message("tool", "22 °C", {"tool_call_id": "1"}),
            Message("tool", "noon", {"tool_call_id": "2", "name": "now"}),
            Message("user", "And?"),
            Message("user", "Well?"),
        ],
        TOOLS,
    )
    results = f"{plain_tool_result('22 °C')}\n{plain_tool_result('noon')}\nAnd?\nWell?"
    assert plain == [
        Message("system", f"Be brief.\n\n{plain_tool_prompt(TOOLS)}"),
        Message("user", "Weather?", {"name": "Ann"}),
        Message("assistant", plain_assistant_call("", calls)),
        Message("user", results),
    ]


def test_a_system_message_is_added_only_for_tools() -> None:
    messages = [Message("user", "Hi")]
    assert render_tools_plainly(messages, ()) == messages
    assert render_tools_plainly(messages, TOOLS)[0] == Message("system", plain_tool_prompt(TOOLS))


# Enforcing

llguidance = pytest.importorskip("llguidance")

VOCABULARY = [b"<tool", b"_call", b"<tool_call>\n", b"}}", b"}}\n</", b'": {"', b"\n<", b"\xc3"]
TABLE = ScriptedMember("toy", VOCABULARY, follows(b"")).tokens


def cursor(tools: Sequence[Tool] = TOOLS, **options: Any) -> Cursor:
    constraint = constraint_for(GenerationConfig(tools=tools, **options))
    assert constraint is not None
    return constraint.cursor(TABLE)


def accepts(cursor: Cursor, text: str) -> bool:
    """Whether the text is a whole answer, and every token of it was allowed in its place."""
    ids = TABLE.encode(text.encode())
    masks = [cursor.allowed(ids[:n]) for n in range(len(ids))]
    allowed = all(mask is None or mask[i] for mask, i in zip(masks, ids, strict=True))
    assert allowed or not cursor.complete(ids)
    return allowed and cursor.complete(ids)


def test_a_named_tool_is_called_and_nothing_else() -> None:
    walk = cursor(tool_choice="get_weather")
    assert walk.forced([]).decode() == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "'
    )
    assert accepts(walk, tagged(*PARIS))
    assert accepts(walk, tagged(*OSLO))
    assert not accepts(walk, "Paris is sunny.")
    assert not accepts(walk, tagged("get_weather", {"days": 3}))
    assert not accepts(walk, tagged("get_weather", {"city": "Oslo", "days": 0}))
    assert not accepts(walk, tagged("get_weather", {"city": "Oslo", "more": 0}))
    assert not accepts(walk, tagged("now", {}))
    assert not accepts(walk, f"{tagged(*PARIS)}\n{tagged(*PARIS)}")
    assert walk.finished(TABLE.encode(tagged(*PARIS).encode()))


def test_arguments_have_no_further_keys_at_any_depth() -> None:
    """Only the outermost object was closed, and any key could be invented in those inside it."""
    inner = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    parameters = {"type": "object", "properties": {"default": inner}, "required": ["default"]}
    walk = cursor([Tool(name="f", parameters=parameters)], tool_choice="f")
    assert accepts(walk, tagged("f", {"default": {"x": 1}}))
    assert not accepts(walk, tagged("f", {"default": {"x": 1, "more": 0}}))


def test_a_tool_without_arguments_is_written_without_asking_anybody() -> None:
    assert cursor(tool_choice="now").forced([]).decode() == tagged("now", {})


def test_required_calls_may_be_several_unless_forbidden() -> None:
    nested = tagged("größe.setzen", {"maß": {"höhe": 1.5, "einheit": "cm"}, "notes": [{"é": []}]})
    both = f"{nested}\n{tagged(*PARIS)}"
    assert accepts(cursor(tool_choice="required"), nested)
    assert accepts(cursor(tool_choice="required"), both)
    assert not accepts(cursor(tool_choice="required", parallel_tool_calls=False), both)
    assert not accepts(cursor(tool_choice="required"), "")


def test_auto_leaves_text_free_and_calls_well_formed() -> None:
    walk = cursor()
    for text in ("", "Hello é <tool>", tagged(*PARIS), f"a {tagged(*PARIS)}\n{tagged(*OSLO)} b"):
        assert accepts(walk, text)
    for text in ("<tool_call>", "a <tool_call> b", tagged("nope", {}), tagged("get_weather", {})):
        assert not accepts(walk, text)
    single = cursor(parallel_tool_calls=False)
    assert accepts(single, f"a {tagged(*PARIS)}")
    assert not accepts(single, tagged(*PARIS) + tagged(*PARIS))


@pytest.mark.parametrize(
    ("response_format", "answer"),
    [
        (JsonSchema(schema={"type": "object", "additionalProperties": False}), "{}"),
        (Regex(pattern="a+/b"), "aa/b"),
        (Choice(options=("yes", "no")), "no"),
    ],
)
def test_auto_with_a_response_format_is_either(
    response_format: ResponseFormat, answer: str
) -> None:
    walk = cursor(response_format=response_format)
    assert accepts(walk, answer)
    assert accepts(walk, tagged(*PARIS))
    assert accepts(walk, f"{tagged(*PARIS)}\n{tagged(*OSLO)}")
    assert not accepts(walk, "something else")
    assert not accepts(walk, answer + tagged(*PARIS))


def test_auto_forbids_nothing_in_free_text() -> None:
    """Reshaping every row of every model to forbid nothing costs more than the mask."""
    walk = cursor()
    for text in ("", "Hello é <tool> you", "a < b"):
        assert walk.allowed(TABLE.encode(text.encode())) is None
    for text in ("a <tool_call>", tagged(*PARIS)[:-1], tagged(*PARIS)[:30]):
        assert walk.allowed(TABLE.encode(text.encode())) is not None


def test_auto_lets_a_tool_be_called_whose_schema_cannot_be_guaranteed() -> None:
    bad = BAD_TOOL.model_copy(update={"strict": None, "parameters": {"type": "object", "enum": []}})
    walk = cursor((bad, NOTHING))
    assert accepts(walk, tagged("f", {"x": [1, 1]}))
    assert not accepts(walk, tagged("f", [1]))


def test_auto_does_not_need_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert constraint_for(GenerationConfig(tools=TOOLS)) is None
    with pytest.raises(MissingDependencyError, match="structured"):
        constraint_for(GenerationConfig(tools=TOOLS, tool_choice="required"))


def test_no_constraint_where_nothing_is_asked_for() -> None:
    assert constraint_for(GenerationConfig()) is None
    assert constraint_for(GenerationConfig(tools=TOOLS, tool_choice="none")) is None


BAD_TOOL = Tool(
    name="f", parameters={"properties": {"x": {"type": "array", "uniqueItems": True}}}, strict=True
)


@pytest.mark.parametrize(
    ("options", "argument", "says"),
    [
        ({"tool_choice": "nope"}, "tool_choice", "get_weather"),
        ({"tool_choice": "required", "tools": ()}, "tool_choice", "at least one tool"),
        (
            {"tool_choice": "now", "response_format": Regex(pattern="a")},
            "response_format",
            "leave it out",
        ),
        ({"response_format": Grammar(lark='start: "a"')}, "response_format", "combined"),
        ({"tools": (NOTHING, NOTHING)}, "tools", "several tools called 'now'"),
        (
            {"tools": (BAD_TOOL,), "tool_choice": "f"},
            "tools[f].parameters",
            "#/properties/x: uniqueItems can only be checked",
        ),
        (
            {"tools": (Tool(name="f", parameters={"type": "string"}),), "tool_choice": "f"},
            "tools[f].parameters",
            "object",
        ),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], argument: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        constraint_for(GenerationConfig(**{"tools": TOOLS, **options}))
    assert caught.value.argument == argument
    assert says in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(TOOLS))
def test_forced_calls_are_valid_whatever_a_model_prefers(random: Any, tool: Tool) -> None:
    walk = cursor(tool_choice=tool.name)
    ids: list[int] = []
    endings = [TABLE.id_of(symbol) for symbol in (b'"', b"}", b"]", b"0")]
    while not walk.finished(ids):
        flags = walk.allowed(ids)
        assert flags is not None  # a call that may end anywhere would be no call
        closing = [i for i in endings if i is not None and flags[i]]
        options = closing if closing and len(ids) > 60 else flags.nonzero()[0].tolist()
        ids.append(random.choice(options))
    answer = parse(b"".join(map(TABLE.symbol, ids)).decode(), [tool])
    (call,) = answer.calls
    assert (call.name, answer.text, answer.invalid) == (tool.name, "", ())
    jsonschema.validate(call.arguments, tool.parameters)
