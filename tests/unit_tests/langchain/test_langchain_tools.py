"""Tools and structured output, with models that are badly behaved unless they are constrained."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any, Generic, Optional, TypeVar
from typing import TypedDict as PlainTypedDict

import pytest
from chatty import Chatty, total
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from safe_integrations.engine.tokens import END
from safe_integrations.errors import GenerationError, InvalidArgumentError
from safe_integrations.langchain import ChatSafe
from safe_integrations.langchain.tools import openai_tool
from safe_integrations.testing import ScriptedMember

pytest.importorskip("llguidance")


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def shout(text: str) -> str:
    """Makes a text loud.

    Args:
        text: The text.
    """
    return text.upper()


def call(name: str, /, **arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


ADD = call("add", a=1, b=2)


def model(reply: Any, **options: Any) -> ChatSafe:
    drafter = Chatty("drafter", reply, sure=0.8)
    return ChatSafe(drafter=drafter, verifiers=[Chatty("verifier", reply, sure=0.6)], **options)


# Calls


@pytest.mark.parametrize(
    "choice",
    [
        "any",
        "required",
        True,
        "add",
        {"type": "function", "function": {"name": "add"}},
        {"type": "tool", "name": "add"},
        {"type": "any"},
        None,
        "auto",
    ],
)
def test_every_form_of_tool_choice_gives_the_call(choice: Any) -> None:
    bound = model(ADD).bind_tools([add, shout], tool_choice=choice)
    for message in (bound.invoke("1 + 2?"), total(bound.stream("1 + 2?"))):
        assert message.content == ""
        assert [(c["name"], c["args"]) for c in message.tool_calls] == [("add", {"a": 1, "b": 2})]
        assert message.tool_calls[0]["id"].startswith("call_")
        assert message.response_metadata["finish_reason"] == "tool_calls"
        assert message.invalid_tool_calls == []


@pytest.mark.parametrize("choice", ["none", False])
def test_no_tool_choice_leaves_the_text_alone(choice: Any) -> None:
    message = model("Three.").bind_tools([add], tool_choice=choice).invoke("1 + 2?")
    assert message.content == "Three." and not message.tool_calls


@pytest.mark.parametrize("choice", ["sub", {"type": "function", "function": {"name": "sub"}}, 3])
def test_unknown_tool_choices_are_refused(choice: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="use one of auto, none, any, required, add"):
        model(ADD).bind_tools([add], tool_choice=choice)


def test_tools_that_run_elsewhere_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="only functions"):
        model(ADD).bind_tools([{"type": "web_search_preview"}])


def test_calls_stream_in_pieces() -> None:
    text = "Let me see.\n" + call("shout", text="hello 🗼 world")
    chunks = list(model(text).bind_tools([shout]).stream("x"))
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert len(pieces) > 2
    assert pieces[0]["name"] == "shout" and pieces[0]["id"]
    assert all(piece["name"] is None and piece["id"] is None for piece in pieces[1:])
    message = total(chunks)
    assert message.content == "Let me see."
    assert message.tool_calls[0]["args"] == {"text": "hello 🗼 world"}


def test_several_calls() -> None:
    text = ADD + "\n" + call("shout", text="x")
    bound = model(text).bind_tools([add, shout], tool_choice="any", parallel_tool_calls=True)
    for message in (bound.invoke("x"), total(bound.stream("x"))):
        assert [c["name"] for c in message.tool_calls] == ["add", "shout"]
        assert len({c["id"] for c in message.tool_calls}) == 2


def test_eager_tools_make_the_first_turn_a_call() -> None:
    eager = model(ADD, eager_tools=True)
    called = eager.bind_tools([add])
    asked: list[Any] = [HumanMessage("1 + 2?")]
    seen: list[str] = []

    def choice(bound: Any, messages: Any) -> str:
        return eager._request(bound.kwargs, None, messages).options.tool_choice

    asked.append(called.invoke(asked))
    seen.append(choice(called, asked[:1]))
    asked.append(add.invoke(asked[-1].tool_calls[0]))
    seen.append(choice(called, asked))
    seen.append(choice(eager.bind_tools([add], tool_choice="auto"), asked[:1]))
    seen.append(choice(eager.bind(), asked[:1]))
    assert seen == ["required", "auto", "auto", "auto"]


def test_stop_strings_do_not_cut_a_call_that_is_asked_for() -> None:
    message = model(ADD, stop=["\n"]).bind_tools([add], tool_choice="any").invoke("x")
    assert message.tool_calls[0]["args"] == {"a": 1, "b": 2}


def test_results_go_back_to_the_model() -> None:
    def reply(messages: Any) -> str:
        return f"It is {messages[-1].content}." if messages[-1].role == "tool" else ADD

    chatty = model(reply)
    asked: list[Any] = [HumanMessage("1 + 2?")]
    asked.append(chatty.bind_tools([add]).invoke(asked))
    asked.append(add.invoke(asked[-1].tool_calls[0]))
    assert isinstance(asked[-1], ToolMessage)
    assert chatty.bind_tools([add]).invoke(asked).content == "It is 3."
    seen = chatty.drafter.conversations[-1]
    assert [m.role for m in seen] == ["user", "assistant", "tool"]
    assert seen[1].extra["tool_calls"][0]["function"]["name"] == "add"
    assert seen[2].extra["tool_call_id"] == asked[1].tool_calls[0]["id"]
    assert chatty.drafter.tools[-1][0].name == "add"


def test_an_agent_runs_two_tools_and_answers() -> None:
    def reply(messages: Any) -> str:
        results = [m.content for m in messages if m.role == "tool"]
        return [ADD, call("shout", text="three"), f"Done: {', '.join(results)}"][len(results)]

    agent = create_agent(model(reply), [add, shout])
    state = agent.invoke({"messages": [("user", "go")]})
    assert state["messages"][-1].content == "Done: 3, THREE"
    streamed = [
        chunk
        for chunk, _ in create_agent(model(reply), [add, shout]).stream(
            {"messages": [("user", "go")]}, stream_mode="messages"
        )
    ]
    assert "".join(m.content for m in streamed if isinstance(m, AIMessage)) == "Done: 3, THREE"


def test_an_agent_with_tools_and_a_response_format() -> None:
    class Sum(BaseModel):
        value: int

    def reply(messages: Any) -> str:
        return '{"value": 3}' if messages[-1].role == "tool" else ADD

    agent = create_agent(model(reply), [add], response_format=Sum)
    state = agent.invoke({"messages": [("user", "go")]})
    assert state["structured_response"] == Sum(value=3)
    assert any(isinstance(m, ToolMessage) for m in state["messages"])


# Structured output


class Person(BaseModel):
    """Somebody."""

    name: str = Field(description="what they are called")
    age: Optional[int] = None  # noqa: UP045


class PersonV1(BaseModelV1):
    """Somebody."""

    name: str
    age: int


class PersonDict(TypedDict):
    """Somebody."""

    name: str
    age: int


PERSON = {"name": "Ann", "age": 7}
PERSON_SCHEMA = {
    "title": "Person",
    "description": "Somebody.",
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
SCHEMAS = {
    "pydantic": Person,
    "pydantic v1": PersonV1,
    "typed dict": PersonDict,
    "json schema": PERSON_SCHEMA,
    "openai function": {
        "name": "Person",
        "description": "Somebody.",
        "parameters": {k: PERSON_SCHEMA[k] for k in ("type", "properties", "required")},
    },
}
WRITTEN = {
    "function_calling": call("Person", **PERSON),
    "json_schema": json.dumps(PERSON),
    "json_mode": json.dumps(PERSON),
}


@pytest.mark.parametrize("method", WRITTEN)
@pytest.mark.parametrize("kind", SCHEMAS)
def test_structured_output(kind: str, method: Any) -> None:
    schema, strict = SCHEMAS[kind], {"pydantic": True, "typed dict": False}.get(kind)
    name = schema.__name__ if isinstance(schema, type) else "Person"
    written = WRITTEN[method].replace('"Person"', f'"{name}"')
    structured = model(written).with_structured_output(schema, method=method, strict=strict)
    got = [structured.invoke("who?"), list(structured.stream("who?"))[-1]]
    got.append(asyncio.run(structured.ainvoke("who?")))
    for answer in got:
        if isinstance(answer, dict):
            assert kind in ("typed dict", "json schema", "openai function")
            assert answer == PERSON
        else:
            assert type(answer) is schema
            assert (answer.name, answer.age) == ("Ann", 7)


@pytest.mark.parametrize("method", WRITTEN)
def test_include_raw(method: Any) -> None:
    structured = model(WRITTEN[method]).with_structured_output(
        Person, method=method, include_raw=True
    )
    answer = structured.invoke("who?")
    assert isinstance(answer["raw"], AIMessage)
    assert answer["parsed"] == Person(**PERSON)
    assert answer["parsing_error"] is None
    drafter = Chatty("drafter", WRITTEN[method], doubts=True)
    cut = ChatSafe(drafter=drafter, max_tokens=len(WRITTEN[method]) - 1).with_structured_output(
        Person, method=method, include_raw=True
    )
    answer = cut.invoke("who?")
    assert answer["parsed"] is None
    assert "raise max_tokens" in str(answer["parsing_error"])


class Node(BaseModel):
    """A part of a tree."""

    name: str
    parts: list[Node] = []


LEAVES = {"name": "root", "parts": [{"name": "leaf", "parts": []}]}


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("method", WRITTEN)
def test_a_recursive_class_is_guaranteed_all_the_way_down(method: Any, strict: Any) -> None:
    """LangChain's converter makes {} of a reference in a circle, and then anything goes."""
    text = call("Node", **LEAVES) if method == "function_calling" else json.dumps(LEAVES)
    bad = text.replace('"name": "leaf"', '"nome": "leaf"')
    assert bad != text

    def writes(written: bytes) -> dict[bytes, float]:
        right, wrong = text.encode(), bad.encode()
        options = {}
        if wrong.startswith(written):
            options[wrong[len(written) : len(written) + 1] or END] = 0.9
        if right.startswith(written):
            options.setdefault(right[len(written) : len(written) + 1] or END, 0.1)
        return options

    drafter = ScriptedMember("drafter", [], writes)
    structured = ChatSafe(drafter=drafter).with_structured_output(
        Node, method=method, strict=strict
    )
    assert structured.invoke("x") == Node(**LEAVES)


def test_a_recursive_class_as_argument_of_a_tool() -> None:
    @tool
    def plant(tree: Node) -> str:
        """Plants a tree."""
        return "planted"

    function = openai_tool(plant)["function"]
    assert function["name"] == "plant" and function["description"] == "Plants a tree."
    reference = function["parameters"]["$defs"]["Node"]["properties"]["parts"]["items"]
    assert reference == {"$ref": "#/$defs/Node"}


def test_a_recursive_class_as_parameter_of_a_function() -> None:
    """A plain function lost the reference that a tool of LangChain keeps."""

    def save(n: Node, times: int = 1) -> str:
        """Saves a tree.

        Args:
            n: The tree.
            times: How often.
        """
        return n.name * times

    function = openai_tool(save)["function"]
    assert (function["name"], function["description"]) == ("save", "Saves a tree.")
    parameters = function["parameters"]
    assert parameters["$defs"]["Node"]["properties"]["parts"]["items"] == {"$ref": "#/$defs/Node"}
    assert parameters["properties"]["times"]["description"] == "How often."
    save.__doc__ = None
    assert openai_tool(save)["function"]["name"] == "save"


class Tree(TypedDict):
    """A part of a tree."""

    name: str
    parts: list[Tree]


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("method", WRITTEN)
def test_a_recursive_typed_dict(method: Any, strict: Any) -> None:
    """LangChain's converter ran into itself until Python's stack was full."""
    text = call("Tree", **LEAVES) if method == "function_calling" else json.dumps(LEAVES)
    structured = model(text).with_structured_output(Tree, method=method, strict=strict)
    assert structured.invoke("x") == LEAVES
    assert openai_tool(Tree)["function"]["description"] == "A part of a tree."


def test_what_pydantic_cannot_describe_is_refused_by_name() -> None:
    class Old(PlainTypedDict):
        parts: list[Old]

    Old.__annotations__["parts"] = list[Old]
    if sys.version_info < (3, 12):
        with pytest.raises(InvalidArgumentError, match=r"schema=.*typing_extensions"):
            openai_tool(Old)


@pytest.mark.parametrize(
    ("schema", "written", "wrong"),
    [
        ({"title": "L", "type": "array", "items": {"type": "integer"}}, "[1, 2]", '{"a": 1}'),
        ({"title": "E", "enum": ["red", "blue"]}, '"red"', '"green"'),
        ({"title": "A", "anyOf": [{"type": "integer"}, {"type": "null"}]}, "12", '"x"'),
        ({"name": "O", "strict": True, "schema": PERSON_SCHEMA}, json.dumps(PERSON), "[1]"),
        (
            {"type": "json_schema", "json_schema": {"name": "O", "schema": PERSON_SCHEMA}},
            json.dumps(PERSON),
            "[1]",
        ),
    ],
    ids=["array", "enum", "anyOf", "OpenAI's", "OpenAI's format"],
)
def test_every_dict_that_is_a_schema_constrains(schema: Any, written: str, wrong: str) -> None:
    """Some forms gave no constraint at all, and no error."""
    structured = model(written).with_structured_output(schema, method="json_schema")
    assert structured.invoke("x") == json.loads(written)
    with pytest.raises(GenerationError):
        model(wrong, lookahead=1).with_structured_output(schema, method="json_schema").invoke("x")


def test_openais_form_of_a_schema_can_be_called() -> None:
    schema = {"name": "Person", "strict": True, "schema": PERSON_SCHEMA}
    assert model(WRITTEN["function_calling"]).with_structured_output(schema).invoke("x") == PERSON


@pytest.mark.parametrize("schema", [{"title": "L", "type": "array"}, {"title": "E", "enum": [1]}])
def test_what_is_no_object_cannot_be_called(schema: Any) -> None:
    with pytest.raises(InvalidArgumentError, match='use method="json_schema"'):
        model("x").with_structured_output(schema)


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    """Holds something."""

    content: T


@pytest.mark.parametrize("method", WRITTEN)
def test_a_generic_class(method: Any) -> None:
    """`Box[int]` is its name, and no name of a function."""
    written = call("Box_int_", content=3) if method == "function_calling" else '{"content": 3}'
    structured = model(written).with_structured_output(Box[int], method=method)
    assert structured.invoke("x") == Box[int](content=3)
    assert list(structured.stream("x"))[-1] == Box[int](content=3)


def test_tools_in_the_form_of_openais_responses() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    flat = {"type": "function", "name": "add", "description": "Adds.", "parameters": parameters}
    bound = model(call("add", a=1)).bind_tools([flat], tool_choice="any")
    assert bound.invoke("x").tool_calls[0]["args"] == {"a": 1}


def test_tools_that_cannot_be_read_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match="tools="):
        model("x").bind_tools([{"type": "object", "properties": {}}])


def test_json_mode_without_a_schema() -> None:
    structured = model('{"anything": [1]}').with_structured_output(method="json_mode")
    assert structured.invoke("x") == {"anything": [1]}


class Town(BaseModel):
    """A town."""

    name: str
    tags: list[str] = []


TOWN = {"name": "Paris", "tags": ["old", "big"]}


@pytest.mark.parametrize("method", WRITTEN)
@pytest.mark.parametrize("kind", [Town, Town.model_json_schema()], ids=["pydantic", "dict"])
def test_partial_objects_stream(kind: Any, method: Any) -> None:
    """Each part holds what the one before held, and more; the last is the whole."""
    text = call("Town", **TOWN) if method == "function_calling" else json.dumps(TOWN)
    structured = model(text).with_structured_output(kind, method=method)

    async def streamed() -> list[Any]:
        return [part async for part in structured.astream("which?")]

    for parts in (list(structured.stream("which?")), asyncio.run(streamed())):
        plain = [part if isinstance(part, dict) else part.model_dump() for part in parts]
        assert len(plain) >= 3 and plain[-1] == TOWN
        for before, after in itertools.pairwise(plain):
            assert after["name"].startswith(before["name"])
            assert len(before.get("tags", ())) <= len(after.get("tags", ()))
            assert before != after


def test_wrong_arguments_of_structured_output() -> None:
    with pytest.raises(InvalidArgumentError, match="method='xml'"):
        model("x").with_structured_output(Person, method="xml")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="schema=None"):
        model("x").with_structured_output()
    with pytest.raises(InvalidArgumentError, match="tols="):
        model("x").with_structured_output(Person, tols=[add])
