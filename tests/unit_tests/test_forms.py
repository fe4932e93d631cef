"""Forms of calls: taught by templates, agreed on, enforced, read and written back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count, pairwise, product
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.llms import ChatMessage
from taught import TAUGHT, template
from toy_models import toy_model, toy_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from safe_integrations.calls.agreement import KNOWN, agree, taught_form
from safe_integrations.calls.form import QUOTE
from safe_integrations.calls.forms import FORMS, HERMES, form_named
from safe_integrations.calls.grammar import arguments_violation, constraint_for
from safe_integrations.calls.plain import plain_tool_prompt, tool_signature
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import ParsedAnswer, ToolCallDelta
from safe_integrations.config import EnsembleConfig, GenerationConfig, Tool
from safe_integrations.engine.tokens import END
from safe_integrations.errors import InvalidArgumentError, UnenforcedSchemaWarning
from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.llama_index.window import Narrowed
from safe_integrations.messages import Message
from safe_integrations.models.load import load_member
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.structure.closing import BYTES
from safe_integrations.structure.constraint import Constraint
from safe_integrations.testing import ScriptedMember, follows

pytest.importorskip("llguidance")

BOOK = Tool(
    name="book_trip",
    description="Books a trip.",
    parameters={
        "type": "object",
        "properties": {
            "to": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 99},
            "class": {"enum": ["first", "second"]},
            "quiet": {"type": "boolean"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "price": {"type": ["number", "null"]},
            "with": {"type": "array", "items": {"$ref": "#/$defs/Guest"}},
        },
        "required": ["to", "days"],
        "$defs": {"Guest": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
    strict=False,
)
NOW = Tool(name="now")
ANY = Tool(name="any-thing", parameters={"additionalProperties": True}, strict=False)
TOOLS = (BOOK, NOW, ANY)

Call = tuple[str, dict[str, Any]]
OSLO: Call = ("book_trip", {"to": 'Oslo "N"\n', "days": 3, "quiet": True, "with": [{"name": "é"}]})
NOTHING: Call = ("now", {})


def rendered(source: str, turns: list[dict[str, Any]], generation: bool) -> str:
    texts, _ = render_jinja_template(
        [turns],
        tools=[tool_signature(KNOWN)],
        chat_template=source,
        add_generation_prompt=generation,
    )
    return str(texts[0])


def written(form: str, what: Sequence[Call]) -> str:
    """Calls as a template of the form writes them."""
    made = [{"id": f"call0000{i}", "function": dict(zip(("name", "arguments"), call, strict=True))}
            for i, call in enumerate(what)]  # fmt: skip
    turns = [{"role": "assistant", "content": "", "tool_calls": made}]
    return rendered(TAUGHT[form].replace("m.tool_calls", "messages[0].tool_calls"), turns, False)


def streamed(
    pieces: Iterable[str], form: str, tools: Sequence[Tool] = TOOLS
) -> tuple[list[tuple[Any, ...]], ParsedAnswer]:
    """What a stream hands out, put together, and the whole answer."""
    numbers = count()
    stream = ToolCallStream(
        tools, FORMS[form], lenient=False, new_id=lambda: f"call_{next(numbers)}"
    )
    out = [item for piece in pieces for item in stream.push(piece)] + stream.finish()
    told: list[tuple[Any, ...]] = [("".join(item for item in out if isinstance(item, str)),)]
    parts: dict[int, tuple[str | None, str | None, str]] = {}
    for item in out:
        if isinstance(item, ToolCallDelta):
            call_id, name, arguments = parts.get(item.number, (item.id, item.name, ""))
            assert (item.id is None) is (item.number in parts)
            parts[item.number] = call_id, name, arguments + item.arguments
    return [*told, *parts.values()], stream.answer()


def found(answer: ParsedAnswer) -> list[Call]:
    return [(call.name, call.arguments) for call in answer.calls]


def several(form: str, what: Sequence[Call]) -> Sequence[Call]:
    return what[:1] if FORMS[form].alone else what


# Templates


@pytest.mark.parametrize("form", FORMS)
def test_what_a_template_teaches_is_read_from_a_known_call(form: str) -> None:
    source = template(form)
    assert taught_form(lambda turns, generation: rendered(source, turns, generation)) is FORMS[form]


def test_a_template_teaches_nothing_where_it_writes_no_call_or_refuses() -> None:
    def refuses(*_: object) -> None:
        return None

    assert taught_form(refuses) is None
    for source in (template(None), template(None).replace("m.content", "m.content ~ m.tool_calls")):
        assert taught_form(lambda *args, source=source: rendered(source, *args)) is None


def test_a_template_that_wants_arguments_as_text_is_given_text() -> None:
    source = template("mistral").replace("f.arguments | tojson", "'' + f.arguments")

    def render(turns: list[dict[str, Any]], generation: bool) -> str | None:
        try:
            return rendered(source, turns, generation)
        except TypeError:
            return None

    assert taught_form(render) is FORMS["mistral"]


@pytest.mark.parametrize("form", FORMS)
def test_what_a_template_writes_is_read_however_it_is_cut(form: str) -> None:
    what = several(form, [OSLO, NOTHING])
    text = written(form, what)
    whole = streamed([text], form)
    assert found(whole[1]) == list(what)
    assert (whole[1].text.strip(), whole[1].invalid) == ("", ())
    assert [json.loads(told[2]) for told in whole[0][1:]] == [arguments for _, arguments in what]
    assert streamed(text, form) == whole
    assert streamed([text[i : i + 3] for i in range(0, len(text), 3)], form) == whole


# Agreement


def test_any_two_members_agree_on_one_form() -> None:
    for one, other in product([None, *FORMS], repeat=2):
        forms = {name: FORMS[form] if form else None for name, form in (("a", one), ("b", other))}
        agreement = agree(forms)
        assert agreement.form is (FORMS[one] if one is not None and one == other else HERMES)
        if one != other:
            assert f"a teaches {one or 'none'}, b teaches {other or 'none'}" in str(agreement)
        assert agree(forms, "glm").form is FORMS["glm"]


def test_a_form_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(InvalidArgumentError, match="use one of auto, hermes, function-xml"):
        agree({}, "xml")
    with pytest.raises(InvalidArgumentError, match="tool_form"):
        SafeEngine(ScriptedMember("a", [], follows(b"x")), (), EnsembleConfig(tool_form="x"))
    assert form_named("hermes") is HERMES


# Reading


@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_cut_off_is_no_call(form: str) -> None:
    """Half a path is a path: only calls whose end is there are carried out."""
    what = several(form, [NOTHING, OSLO])
    text = FORMS[form].write(what)
    for cut in range(len(text)):
        told, answer = streamed([text[:cut]], form)
        assert (told, answer) == streamed(text[:cut], form)
        assert found(answer) == list(what[: len(answer.calls)])
        assert all(call.cut_off for call in answer.invalid), text[:cut]
        for invalid in answer.invalid:
            assert [t for t in told[1:] if t[0] == invalid.id] in (
                [],
                [(invalid.id, invalid.name, invalid.arguments)],
            )
        begun = FORMS[form].opening in text[:cut]
        assert bool(answer.calls or answer.invalid) is begun or FORMS[form].alone


@pytest.mark.parametrize("form", FORMS)
def test_a_malformed_call_is_invalid_and_does_not_hide_the_next(form: str) -> None:
    opening, section = FORMS[form].opening, FORMS[form].around_calls[0]
    broken = f"{opening}{section} oops! {FORMS[form].end}"
    for text in (broken, f"{broken}\n{FORMS[form].write([NOTHING])}"):
        told, answer = streamed([text], form)
        assert (told, answer) == streamed(text, form)
        if form == "llama":  # what does not begin as a call is text
            assert answer.text
            continue
        assert len(answer.invalid) == 1 and not answer.invalid[0].cut_off
        again = text is not broken and FORMS[form].end and not FORMS[form].alone
        assert found(answer) == ([NOTHING] if again else [])


SNIPPETS = st.sampled_from(
    [form.write([OSLO, NOTHING]) for form in FORMS.values()]
    + [text for form in FORMS.values() for text in form.texts]
    + ["now", "book_trip", "{", "}", '"', "'", "\\", "\n", " ", "x", "é", "3", "true", QUOTE, ","]
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(FORMS)), st.lists(SNIPPETS, max_size=6), st.data())
def test_how_text_is_cut_does_not_matter(form: str, parts: list[str], data: Any) -> None:
    text = FORMS[form].opening * data.draw(st.integers(0, 1)) + "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    whole = streamed([text], form)
    assert streamed((text[a:b] for a, b in pairwise([0, *cuts, len(text)])), form) == whole
    assert streamed(text, form) == whole


def is_writable(form: str, value: Any) -> bool:
    """Whether a form has a way to write a text: the others hold what ends it."""
    ends = [end.decode().strip() for end in FORMS[form].ends]
    return not any(end in text for end in ends for text in texts_of(value))


def texts_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_of(part)]
    return [text for item in value for text in texts_of(item)] if isinstance(value, list) else (
        [value] if isinstance(value, str) else []
    )  # fmt: skip


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\n\n x \n",
        "3",
        "true",
        "null",
        "[1]",
        '{"a": "b"}',
        "</",
        "'",
        '\\"',
        "a, b",
        "(=)",
    ]
)
TRIP = st.fixed_dictionaries(
    {"to": TEXT, "days": st.integers(1, 99)},
    optional={
        "class": st.sampled_from(["first", "second"]),
        "quiet": st.booleans(),
        "price": st.sampled_from([None, 0, 2, 0.5, -1.25]),
        "with": st.lists(st.fixed_dictionaries({"name": TEXT}), max_size=2),
    },
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(FORMS)), TRIP)
def test_any_arguments_come_back_as_they_were(form: str, arguments: dict[str, Any]) -> None:
    """Strings stay strings, though they look like numbers: the tool's schema tells."""
    if is_writable(form, arguments):
        order = list(BOOK.parameters["properties"])
        arguments = dict(sorted(arguments.items(), key=lambda item: order.index(item[0])))
        text = FORMS[form].write([("book_trip", arguments)])
        told, answer = streamed([text], form)
        assert found(answer) == [("book_trip", arguments)]
        assert json.loads(told[1][2]) == arguments
        assert accepts(form, text)


def test_values_are_read_by_the_schema() -> None:
    def value(key: str, text: str) -> Any:
        call = (
            f"<tool_call>book_trip<arg_key>{key}</arg_key><arg_value>{text}</arg_value></tool_call>"
        )
        answer = streamed([call], "glm")[1]
        return answer.calls[0].arguments[key] if answer.calls else answer.invalid[0].error

    assert [value("to", text) for text in ("3", "null", ' "x" ')] == ["3", "null", ' "x" ']
    assert [value("note", text) for text in ("3", "null", "None")] == ["3", None, None]
    assert [value("days", text) for text in ("3", "\n3\n")] == [3, 3]
    assert [value("quiet", text) for text in ("true", "True", "false")] == [True, True, False]
    assert value("with", "[{'name': \"it's\"}]") == [{"name": "it's"}]
    assert value("with", '[{"name": "a</arg_value>b"}]') == [{"name": "a</arg_value>b"}]
    assert value("extra", "3") == 3
    assert value("extra", "x y") == "x y"
    assert value("days", "three") == "three is not JSON"
    assert value("with", "[1, nan]") == "[1, nan] is not JSON"


def test_a_form_that_says_what_is_a_string_is_believed() -> None:
    def value(string: str, text: str) -> Any:
        pair = f'<｜DSML｜parameter name="days" string="{string}">{text}</｜DSML｜parameter>'
        tag = "<｜DSML｜function_calls><｜DSML｜invoke name="
        call = f'{tag}"book_trip">{pair}</｜DSML｜invoke></｜DSML｜function_calls>'
        answer = streamed([call], "dsml")[1]
        return answer.calls[0].arguments["days"] if answer.calls else None

    assert [value("false", "3"), value("true", "3"), value("false", "x")] == [3, "3", None]


def test_of_a_parameter_that_is_there_twice_the_last_counts() -> None:
    """As in JSON."""
    pairs = "".join(f"<arg_key>to</arg_key><arg_value>{to}</arg_value>" for to in "ab")
    told, answer = streamed([f"<tool_call>book_trip{pairs}</tool_call>"], "glm")
    assert found(answer) == [("book_trip", {"to": "b"})]
    assert json.loads(told[1][2]) == {"to": "b"}


def test_a_call_is_one_piece_however_much_of_it_comes_at_once() -> None:
    """LangChain adds up pieces of one call from chunk to chunk, not inside a chunk."""
    for form in FORMS.values():
        stream = ToolCallStream(TOOLS, form, lenient=False)
        pieces = [*stream.push(form.write([OSLO])), *stream.finish()]
        assert sum(isinstance(piece, ToolCallDelta) for piece in pieces) == 1


def test_only_the_form_that_was_agreed_on_is_read() -> None:
    for form, other in product(FORMS, repeat=2):
        if FORMS[form].opening != FORMS[other].opening and not FORMS[other].alone:
            text = FORMS[other].write([NOTHING])
            assert not streamed([text], form)[1].calls


# Enforcing


@cache
def constraint(form: str, choice: str = "required") -> Constraint:
    options = GenerationConfig(tools=TOOLS, tool_choice=choice)
    made = constraint_for(options, FORMS[form])
    assert made is not None
    return made


def accepts(form: str, text: str, choice: str = "required") -> bool:
    return constraint(form, choice).cursor(BYTES).complete(list(text.encode()))


@pytest.mark.parametrize("form", FORMS)
def test_grammars_accept_what_is_written_and_nothing_else(form: str) -> None:
    what = several(form, [OSLO, NOTHING])
    text, says = FORMS[form].write(what), FORMS[form].says
    assert accepts(form, text)
    assert accepts(form, text, "auto")
    assert accepts(form, f"{says}Hi < you.", "auto")
    assert accepts(form, f"a {text} b", "auto") is not bool(says)
    for wrong in (text[:-1], text + "x", f"a {text}", text.replace("now", "new"), ""):
        assert wrong == text or not accepts(form, wrong)
    late = FORMS[form].write([("book_trip", {"to": "Oslo", "days": 100})])
    missing = FORMS[form].write([("book_trip", {"days": 3})])
    unknown = FORMS[form].write([("nope", {})])
    for wrong in (late, missing, unknown):
        assert not accepts(form, wrong)
        assert not accepts(form, wrong, "auto")


@pytest.mark.parametrize("form", FORMS)
def test_what_a_grammar_allows_is_read_as_a_call(form: str) -> None:
    """Random bytes that it allows, then the way to the end."""
    random_ = random.Random(form)
    for choice, length in product(("required", "auto"), (0, 30, 90)):
        walk = constraint(form, choice).cursor(BYTES)
        ids = list(FORMS[form].opening.encode()) if choice == "auto" else []
        while len(ids) < length:
            forced = walk.forced(ids)
            allowed = walk.allowed(ids)
            if allowed is None or not allowed.any():
                break
            choices = [i for i in allowed.nonzero()[0].tolist() if i < 256]
            if not choices:
                break
            ids += forced or [random_.choice(choices)]
        while not bytes(ids).decode(errors="replace").isprintable() and ids[-1] > 0x7F:
            ids.pop()  # half a character
        way = constraint(form).cursor(BYTES).closing(bytes(ids))
        assert way is not None, bytes(ids)
        answer = streamed([(bytes(ids) + way).decode()], form)[1]
        assert answer.calls and not answer.invalid and not answer.text, bytes(ids) + way
        for call in answer.calls:
            tool = next(tool for tool in TOOLS if tool.name == call.name)
            jsonschema.validate(call.arguments, tool.parameters)


def test_the_way_out_of_a_call_is_short() -> None:
    """It once began a second call, and never ended a name or a string without quotes."""
    for form in FORMS:
        begun = (
            FORMS[form].write([("book_trip", {"to": "Os", "days": 3})]).partition("Os")[0] + "Os"
        )
        way = constraint(form).cursor(BYTES).closing(begun.encode())
        assert way is not None and len(way) < 200
        assert len(streamed([begun + way.decode()], form)[1].calls) == 1


def test_what_strings_cannot_be_held_to_is_checked() -> None:
    code = {"type": "string", "pattern": "^[A-Z]{3}$"}
    tool = Tool(name="find", parameters={"properties": {"code": code}})
    with pytest.warns(UnenforcedSchemaWarning, match="pattern at #/properties/code"):
        constraint_for(GenerationConfig(tools=(tool,), tool_choice="find"), FORMS["glm"])
    assert arguments_violation(FORMS["glm"], tool, {"code": "abc"}) is not None
    assert arguments_violation(FORMS["glm"], tool, {"code": "OSL"}) is None
    assert arguments_violation(HERMES, tool, {"code": "abc"}) is None  # the grammar enforces it
    strict = tool.model_copy(update={"strict": True})
    with pytest.raises(InvalidArgumentError, match="pattern can only be checked"):
        constraint_for(GenerationConfig(tools=(strict,), tool_choice="find"), FORMS["glm"])
    free = Tool(name="find", parameters={"properties": {"code": {"type": "string"}}}, strict=True)
    for form in FORMS.values():
        constraint_for(GenerationConfig(tools=(free,), tool_choice="find"), form)


def test_a_key_that_a_form_cannot_write_is_refused_with_a_way_out() -> None:
    tool = Tool(name="find", parameters={"properties": {"a>b": {"type": "string"}}})
    options = GenerationConfig(tools=(tool,), tool_choice="find")
    assert constraint_for(options) is not None
    with pytest.raises(InvalidArgumentError, match="set tool_form='hermes'"):
        constraint_for(options, FORMS["function-xml"])


# Members


def spelled(form: str) -> list[str]:
    """Tags of a form, as tokenizers have them among their special tokens."""
    tags = {"gpt-oss": ["<|channel|>", "<|message|>"], "functionary": ["<function="], "llama": []}
    return tags.get(form, [FORMS[form].opening])


@pytest.mark.parametrize("form", ["hermes", "mistral", "kimi", "gpt-oss", "gemma"])
def test_tags_of_the_agreed_form_are_text_and_no_others(form: str) -> None:
    """Special tokens have no probability, so such a model could not call any tool."""
    special = [*spelled(form), "<|im_end|>", "<|other|>"]
    tokenizer = toy_tokenizer(400, template(form), special)
    member = load_member(toy_model(form, 400, None, tokenizer))
    ids = dict(zip(special, tokenizer.convert_tokens_to_ids(special), strict=True))
    assert set(ids.values()) - {ids["<|im_end|>"]} <= set(member.tokens.silent)
    own = SafeEngine(member).drafter
    for tag in spelled(form):
        assert own.tokens.symbol(ids[tag]) == tag.encode()
        assert own.tokens.encode(f"a{tag}b".encode())[1] == ids[tag]
    assert ids["<|other|>"] in own.tokens.silent
    other = SafeEngine(member, (), EnsembleConfig(tool_form="apertus")).drafter
    assert set(ids.values()) - {ids["<|im_end|>"]} <= set(other.tokens.silent)
    assert other.name == member.name


def test_what_ends_a_turn_does_so_behind_a_call_as_well() -> None:
    """Some templates close a call with a token that ends the turn."""
    tokenizer = toy_tokenizer(400, template("gpt-oss"), ["<|message|>", "<|im_end|>"])
    table = SafeEngine(load_member(toy_model("ends", 400, None, tokenizer))).drafter.tokens
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert table.symbol(end) == table.symbol(tokenizer.eos_token_id)


def engine_of(*forms: str | None, **config: Any) -> SafeEngine:
    loaded = [toy_model(f"m{i}", 400, None, tokenizer_of(form)) for i, form in enumerate(forms)]
    drafter, *verifiers = map(load_member, loaded)
    return SafeEngine(drafter, verifiers, EnsembleConfig(**config))


@cache
def tokenizer_of(form: str | None) -> Any:
    return toy_tokenizer(400, template(form), ["<|im_start|>", "<|im_end|>"])


USED = [
    Message("user", "Time?"),
    Message("assistant", "", {"tool_calls": [{"id": "call00000", "type": "function",
            "function": {"name": "now", "arguments": {}}}]}),
    Message("tool", "12:00", {"tool_call_id": "call00000"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("forms", "config", "agreed"),
    [
        (("glm", "glm"), {}, "glm"),
        (("glm", "kimi"), {}, "hermes"),
        (("hermes", None), {}, "hermes"),
        ((None, None), {}, "hermes"),
        (("glm", "kimi"), {"mode": "drafter-only"}, "glm"),
        (("glm", "kimi"), {"tool_form": "kimi"}, "kimi"),
    ],
)
def test_every_member_is_told_of_the_agreed_form(
    forms: tuple[str | None, ...], config: dict[str, Any], agreed: str
) -> None:
    """Each was told its own form, and the grammar had a third one."""
    engine = engine_of(*forms, **config)
    assert engine.agreement.form is FORMS[agreed]
    call = FORMS[agreed].write([NOTHING])
    for member, form in zip(engine.members, forms, strict=True):
        prompt = tokenizer_of(form).decode(member.render(USED, [NOW]))
        ours = plain_tool_prompt([NOW], FORMS[agreed])
        assert (ours in prompt) is (form != agreed)
        assert ("Tools: " in prompt) is (form == agreed)
        assert "".join(call.split()) in "".join(prompt.split())
        if form != agreed:
            assert "<tool_response>\n12:00\n</tool_response>" in prompt


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form].says])
def test_where_tools_are_offered_the_model_says_whether_it_calls_or_talks(form: str) -> None:
    """Behind the header of a text no call can begin."""
    (member,) = engine_of(form).members
    asked, header = [Message("user", "Time?")], FORMS[form].says
    with_tools, without = (
        tokenizer_of(form).decode(member.render(asked, tools)) for tools in ([NOW], [])
    )
    assert without.endswith(f"<|im_start|>assistant\n{header}")
    assert with_tools.endswith("<|im_start|>assistant\n")


def test_what_was_agreed_on_is_in_the_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "safe_integrations")
    engine_of("glm", "kimi")
    assert "tools are called in the form hermes: m0 teaches glm, m1 teaches kimi" in caplog.text


def test_a_member_that_is_altered_still_writes_the_agreed_form() -> None:
    """Members with one name are told apart, and narrowed ones go into an engine of their own."""
    member = load_member(toy_model("twin", 400, None, tokenizer_of("glm")))
    twins = SafeEngine(member, [member])
    again = SafeEngine(*(Narrowed(m, 256) for m in twins.members[:1]), twins.verifiers)
    for engine in (twins, again):
        assert engine.agreement.form is FORMS["glm"]
        for one in engine.members:
            assert "<tool_call>now" in tokenizer_of("glm").decode(one.render(USED, [NOW]))
    assert [m.name for m in again.members] == ["twin", "twin#2"]
    assert again.drafter.context_window == 256


# Both frameworks


def script(form: str, what: Sequence[Call]) -> ScriptedMember:
    """A model that wants to write calls, and writes anything else where it must."""
    text = FORMS[form].write(what).encode()

    def expects(written: bytes) -> dict[bytes, float]:
        wanted = text[len(written) : len(written) + 1] or END
        return {bytes([b]): 0.1 / 256 for b in range(256)} | {wanted: 0.9}

    return ScriptedMember("m", [], expects)


@pytest.mark.parametrize("form", ["glm", "kimi", "gemma", "lfm", "llama"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_both_frameworks_read_the_agreed_form(form: str, choice: str) -> None:
    what = several(form, [OSLO, NOTHING])
    tools = [tool_signature(tool) for tool in TOOLS]
    options = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": True, "strict": False}
    model = ChatSafe(drafter=script(form, what), tool_form=form, max_tokens=600)
    for answer in (model.invoke("?", **options), sum_of(model.stream("?", **options))):
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == list(what)
        assert answer.content == ""
    llm = SafeLLM(drafter=script(form, what), tool_form=form, max_tokens=600)
    response = llm.chat([ChatMessage(content="?")], **options)
    found = llm.get_tool_calls_from_response(response)
    assert [(call.tool_name, call.tool_kwargs) for call in found] == list(what)


@pytest.mark.parametrize("form", ["function-xml", "kimi", "gemma", "lfm"])
def test_a_call_that_max_tokens_closes_is_never_carried_out(form: str) -> None:
    text = FORMS[form].write([OSLO])
    tools, walk = [tool_signature(BOOK)], constraint(form, "book_trip").cursor(BYTES)
    begun = (text.partition("Oslo")[0] + "Os").encode()
    ways = walk.closing(b""), begun + (walk.closing(begun) or b"")
    budget = max(len(way or b"") for way in ways) + 1
    assert budget < len(text.encode())
    model = ChatSafe(drafter=script(form, [OSLO]), tool_form=form, max_tokens=budget)
    answer = model.invoke("?", tools=tools, tool_choice="book_trip", strict=False)
    assert answer.tool_calls == []
    assert len(answer.invalid_tool_calls) == 1
    told = answer.response_metadata["closed"]["text"]
    assert json.loads(told)["to"].startswith("Os")


@pytest.mark.parametrize("form", FORMS)
def test_what_was_cut_of_a_call_is_named(form: str) -> None:
    ours = (
        "book_trip",
        {"to": "Oslo", "days": 17, "quiet": True, "note": "née", "with": [{"name": "Xi"}]},
    )
    text = FORMS[form].write([ours]).encode()
    for part, pointer in (
        (b"trip", "/name"),
        (b"Os", "/arguments/to"),
        (b"7", "/arguments/days"),
        ("ée".encode(), "/arguments/note"),
        (b"Xi", "/arguments/with/0/name"),
    ):
        start = text.rindex(part)
        cut = constraint(form).cursor(BYTES).cut(text, [(start, start + len(part))])
        if form == "gemma" and "with" in pointer:
            pointer = "/arguments/with"
        assert cut == [pointer]


def sum_of(chunks: Iterable[Any]) -> Any:
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first
