"""All that can be asked of an answer, in every form, and what is wrong with it by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from safe_integrations.adapters.request import read_request, schema_of
from safe_integrations.config import Choice, EnsembleConfig, JsonSchema, Tool
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain import ChatSafe
from safe_integrations.langchain import tools as langchain
from safe_integrations.llama_index import SafeCallError, SafeLLM
from safe_integrations.llama_index import messages as llama_index
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.structure.closed import closed
from safe_integrations.testing import ScriptedMember, follows

FRAMEWORKS = {
    "langchain": (langchain.openai_tool, langchain.json_schema),
    "llama_index": (llama_index.tool_spec, schema_of),
}
both = pytest.mark.parametrize("framework", FRAMEWORKS)


class Person(BaseModel):
    """Somebody."""

    name: str


class PersonDict(TypedDict):
    """Somebody."""

    name: str


class Tree(TypedDict):
    """A part of a tree."""

    parts: list[Tree]


F = {"type": "function", "function": {"name": "f", "description": None}}
G = {"type": "function", "name": "g", "parameters": {"type": "object"}}


def read(framework: str = "langchain", own: Any = None, **call: Any) -> Any:
    return read_request(own or {}, call, *FRAMEWORKS[framework])


@both
def test_a_calls_options_go_over_the_models(framework: str) -> None:
    own = {"max_tokens": 5, "lookahead": 3, "timeout": 2, "stop": ("x",), "seed": None}
    request = read(framework, own, max_tokens=None, stop="y", unit="token", mode="drafter-only")
    assert request.ensemble == EnsembleConfig(lookahead=3, unit="token", mode="drafter-only")
    assert (request.options.max_tokens, request.options.stop) == (5, ("y",))
    assert request.timeout == 2
    assert read(framework, max_completion_tokens=7).options.max_tokens == 7


@both
def test_tools_of_openai_and_of_ours(framework: str) -> None:
    tools = read(framework, tools=[F, G, Tool(name="h")]).options.tools
    assert tools == (Tool(name="f"), Tool(name="g", parameters={"type": "object"}), Tool(name="h"))


@both
@pytest.mark.parametrize(
    ("given", "taken"),
    [
        *(("auto", "auto"), ("none", "none"), ("any", "required"), ("required", "required")),
        *((True, "required"), (False, "none"), ("f", "f"), (F, "f")),
        *(({"type": "tool", "name": "f"}, "f"), ({"type": "any"}, "required")),
        *(({"name": "f"}, "f"), ({"type": "auto"}, "auto"), ({"type": "none"}, "none")),
    ],
)
def test_tool_choice_is_read_in_every_form(framework: str, given: Any, taken: str) -> None:
    assert read(framework, tools=[F], tool_choice=given).options.tool_choice == taken


@both
def test_response_format_is_read_in_every_form(framework: str) -> None:
    by_name = {"schema": {"type": "string"}, "name": "x"}
    for given, taken in (
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonSchema(schema={"type": "object"})),
        ({"type": "json_schema", "json_schema": by_name}, JsonSchema(schema={"type": "string"})),
        ({"type": "json_schema", "schema": {}}, JsonSchema(schema={})),
        ({"type": "choice", "options": ["a"]}, Choice(options=("a",))),
        (Choice(options=("a",)), Choice(options=("a",))),
        (Person, JsonSchema(schema=closed(Person.model_json_schema()))),
    ):
        assert read(framework, response_format=given).options.response_format == taken
    schema = read(framework, response_format=PersonDict).options.response_format.schema_
    assert schema["properties"]["name"]["type"] == "string"
    assert schema["additionalProperties"] is False
    assert SafeLLM(response_format=Person).response_format == JsonSchema(
        schema=closed(Person.model_json_schema())
    )


@both
def test_a_call_that_is_forced_is_one_call(framework: str) -> None:
    """Small models that may go on calling do; one adapter let them."""
    for given, several in (
        ({"tool_choice": "any"}, False),
        ({"tool_choice": "f"}, False),
        ({"tool_choice": "any", "parallel_tool_calls": True}, True),
        ({"tool_choice": "auto"}, True),
        ({}, True),
    ):
        options = read(framework, tools=[F], **given).options
        assert options.parallel_tool_calls is several, given


@both
def test_stop_strings_cut_no_forced_call_and_no_structured_answer(framework: str) -> None:
    own = {"stop": ("}",)}
    assert read(framework, own, tools=[F], tool_choice="f").options.stop == ()
    assert read(framework, own, response_format={"type": "json_object"}).options.stop == ()
    assert read(framework, own, response_format={"type": "text"}).options.stop == ("}",)
    assert read(framework, own, tools=[F]).options.stop == ("}",)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"timeout": "5"}, "timeout='5'"),
    ({"timeout": 0}, "timeout=0"),
    ({"max_tokens": True}, "max_tokens=True"),
    ({"timeout": -1}, "timeout=-1"),
    ({"max_token": 3}, "max_token=3: there is no such option of a call; use one of"),
    ({"max_tokens": "many"}, "max_tokens='many'"),
    ({"tool_choice": ["f"]}, r"tool_choice=\['f'\]: use one of auto, none, any, required, f"),
    ({"tool_choice": {"f"}}, r"tool_choice=\{'f'\}"),
    ({"tool_choice": 1}, "tool_choice=1"),
    ({"tool_choice": "g"}, "tool_choice='g'"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice="),
    ({"tools": F}, "tools=.*pass a list"),
    ({"tools": "f"}, "tools='f': pass a list"),
    ({"tools": 3}, "tools=3: pass a list"),
    ({"tools": [{"type": "function", "function": {"name": "no name!"}}]}, "name='no name!'"),
    ({"response_format": "json"}, "response_format='json'"),
    ({"response_format": {"type": "xml"}}, "response_format="),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format=.*pass a"),
    ({"stop": 3}, "stop=3"),
    ({"parallel_tool_calls": "maybe"}, "parallel_tool_calls='maybe'"),
    ({"mode": "fast"}, "mode='fast'"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_what_is_wrong_is_said_by_name(given: dict[str, Any], message: str) -> None:
    """`timeout="5"` was a TypeError of a comparison, a list as tool_choice unhashable."""
    member = ScriptedMember("m", [], follows(b"ok"))
    given = {"tools": [F], **given}
    with pytest.raises(InvalidArgumentError, match=message):
        ChatSafe(drafter=member).invoke("x", **given)
    with pytest.raises(SafeCallError, match=message) as caught:
        SafeLLM(drafter=member).complete("x", **given)
    assert isinstance(caught.value.__cause__, InvalidArgumentError)


@both
def test_a_call_that_forces_a_tool_goes_over_the_models_own_format(framework: str) -> None:
    """A model with a `response_format` of its own could never be made to call a tool."""
    own = {"response_format": Person}
    options = read(framework, own, tools=[F], tool_choice="any").options
    assert (options.response_format, options.tool_choice) == (None, "required")
    assert read(framework, own, tools=[F], tool_choice="auto").options.response_format is not None
    both = read(framework, own, tools=[F], tool_choice="f", response_format=Person).options
    assert both.response_format is not None, "the caller said both: the engine refuses that"


@both
def test_a_recursive_typed_dict_is_a_format(framework: str) -> None:
    schema = read(framework, response_format=Tree).options.response_format.schema_
    tree = schema["$defs"]["Tree"]
    assert tree["properties"]["parts"]["items"] == {"$ref": "#/$defs/Tree"}
    assert tree["additionalProperties"] is False


INNER = {"type": "object", "properties": {"x": {"type": "string"}}}
CLOSED = {**INNER, "additionalProperties": False}


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    """Properties that are called `default` or `enum` were taken for the keywords, and left open."""
    names = ("default", "enum", "const", "examples", "properties", "items", "anyOf")
    same: dict[str, Any] = {
        "open": {**INNER, "additionalProperties": True},
        "map": {"type": "object"},
        "data": {"const": INNER, "default": INNER, "enum": [INNER], "examples": [INNER]},
        "parts": {"allOf": [INNER, {"type": "object", "properties": {"y": {}}}]},
        "more": {**INNER, "anyOf": [{"properties": {"y": {}}}, {"properties": {"z": {}}}]},
    }
    schema = {
        "type": "object",
        "properties": {**dict.fromkeys(names, INNER), **same},
        "$defs": {"D": {"anyOf": [INNER, {"type": "array", "items": INNER}]}},
    }
    assert closed(schema) == {
        "type": "object",
        "properties": {**dict.fromkeys(names, CLOSED), **same},
        "$defs": {"D": {"anyOf": [CLOSED, {"type": "array", "items": CLOSED}]}},
        "additionalProperties": False,
    }
    assert "additionalProperties" not in schema


@both
def test_a_schema_is_closed_in_whatever_form_it_is_given(framework: str) -> None:
    """One form of the same schema let a small model invent keys; so did its dump, read again."""
    for given in (
        {"type": "json_schema", "schema": INNER},
        {"type": "json_schema", "json_schema": {"schema": INNER}},
        JsonSchema(schema=INNER),
    ):
        assert read(framework, response_format=given).options.response_format == JsonSchema(
            schema=CLOSED
        )


def scripted(name: str) -> ScriptedMember:
    return ScriptedMember(name, [], follows(b"ok"))


def test_an_ensemble_is_called_what_its_members_are() -> None:
    """Two of one name were `d+d` on messages, and `d` and `d#2` in their statistics."""
    models = {"drafter": scripted("d"), "verifiers": [scripted("d"), scripted("d#2")]}
    engine = SafeEngine(models["drafter"], models["verifiers"])
    assert [member.name for member in engine.members] == ["d", "d#2", "d#2#2"]
    for model in (ChatSafe(**models), SafeLLM(**models)):
        assert model.model_name == "d+d#2+d#2#2"
    assert SafeLLM(**models).metadata.model_name == "d+d#2+d#2#2"
    assert ChatSafe(drafter="org/d", verifiers=["other/d.gguf"]).model_name == "d+d#2"


@pytest.mark.parametrize("kind", [ChatSafe, SafeLLM])
@pytest.mark.parametrize(
    "given",
    [
        *({"timeout": "5"}, {"timeout": 0}, {"timeout": True}, {"max_tokens": True}),
        *({"temperature": True}, {"top_k": True}, {"seed": False}, {"sharpen_below": True}),
    ],
    ids=str,
)
def test_a_model_is_as_strict_as_a_call(kind: Any, given: dict[str, Any]) -> None:
    """`timeout="5"` was taken here and refused there; one token was made of `max_tokens=True`."""
    with pytest.raises(ValueError, match=next(iter(given))):
        kind(drafter=scripted("d"), **given)
    with pytest.raises(InvalidArgumentError, match=next(iter(given))):
        kind(drafter=scripted("d"))._request(given)
    assert kind(timeout=5)._request({}).timeout == kind()._request({"timeout": 5}).timeout == 5
