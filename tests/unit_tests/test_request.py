"""All that can be asked of an answer, in every form, and what is wrong with it by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from safe_integrations.adapters.request import closed, read_request
from safe_integrations.config import Choice, EnsembleConfig, JsonSchema, Tool
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain import ChatSafe
from safe_integrations.langchain import tools as langchain
from safe_integrations.llama_index import SafeCallError, SafeLLM
from safe_integrations.llama_index import messages as llama_index
from safe_integrations.testing import ScriptedMember, follows

FRAMEWORKS = {
    "langchain": (langchain.openai_tool, langchain.json_schema),
    "llama_index": (llama_index.tool_spec, llama_index.json_schema),
}
both = pytest.mark.parametrize("framework", FRAMEWORKS)


class Person(BaseModel):
    """Somebody."""

    name: str


class PersonDict(TypedDict):
    """Somebody."""

    name: str


F = {"type": "function", "function": {"name": "f", "description": None}}
G = {"type": "function", "name": "g", "parameters": {"type": "object"}}


def read(framework: str = "langchain", own: Any = None, **call: Any) -> Any:
    return read_request(own or {}, call, *FRAMEWORKS[framework])


@both
def test_a_calls_options_go_over_the_models(framework: str) -> None:
    own = {"max_tokens": 5, "lookahead": 3, "timeout": 2, "stop": ("x",), "seed": None}
    request = read(framework, own, max_tokens=None, stop="y", mode="drafter-only")
    assert request.ensemble == EnsembleConfig(lookahead=3, mode="drafter-only")
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


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "string"}}}
    schema = {
        "type": "object",
        "properties": {
            "closed": inner,
            "open": {**inner, "additionalProperties": True},
            "map": {"type": "object"},
            "const": {"const": inner},
        },
    }
    got = closed(schema)
    assert got["additionalProperties"] is False
    assert got["properties"]["closed"]["additionalProperties"] is False
    assert got["properties"]["open"]["additionalProperties"] is True
    assert "additionalProperties" not in got["properties"]["map"]
    assert got["properties"]["const"] == {"const": inner}
    assert "additionalProperties" not in schema
