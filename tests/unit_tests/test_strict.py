"""What a grammar cannot enforce of a schema: checked on the finished answer, refused, or said."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, field_validator
from typer.testing import CliRunner

from safe_integrations.calls.grammar import constraint_for
from safe_integrations.cli import options as cli_options
from safe_integrations.cli.app import app
from safe_integrations.config import GenerationConfig, JsonSchema, Tool
from safe_integrations.errors import (
    InvalidArgumentError,
    SchemaViolationError,
    UnenforcedSchemaWarning,
)
from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.models import inspection
from safe_integrations.models.report import ModelReport
from safe_integrations.models.spec import ModelSpec, Progress
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.structure import constraint as constraints
from safe_integrations.structure.schemas import split, violation
from safe_integrations.testing import ScriptedMember, follows

pytest.importorskip("llguidance")


class Tags(BaseModel):
    """A set: no grammar counts what was written."""

    tags: set[str]


SCHEMA = Tags.model_json_schema()
GOOD, BAD = {"tags": ["a", "b"]}, {"tags": ["a", "a"]}
BROKEN = r"/tags breaks the schema at #/properties/tags/uniqueItems"


def member(text: str) -> ScriptedMember:
    return ScriptedMember("drafter", [], follows(text.encode()))


def call(arguments: Any, name: str = "Tags") -> str:
    written = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


def written(value: Any, method: str) -> str:
    return call(value) if method == "function_calling" else json.dumps(value)


methods = pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])


# The three answers to a schema that is not enforced as a whole


def told(schema: dict[str, Any], strict: bool | None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        constraint_for(GenerationConfig(response_format=JsonSchema(schema=schema, strict=strict)))
    return [str(w.message) for w in caught if w.category is UnenforcedSchemaWarning]


def test_by_default_a_warning_names_once_per_schema_what_is_not_enforced() -> None:
    for name in ("once", "again"):
        schema = {"properties": {name: {"type": "array", "uniqueItems": True, "not": {"const": 1}}}}
        assert told(schema, False) == []
        (said,) = told(schema, None)
        assert f"not at #/properties/{name}, uniqueItems at #/properties/{name}" in said
        assert told(schema, None) == []


def test_a_schema_that_is_enforced_as_a_whole_is_not_warned_of() -> None:
    assert told({"type": "string", "format": "binary", "default": float("inf")}, None) == []


def test_strict_refuses_before_any_work() -> None:
    with pytest.raises(InvalidArgumentError, match="at #/properties/tags: uniqueItems can only"):
        told(SCHEMA, True)
    tool = Tool(name="f", parameters=SCHEMA, strict=True)
    with pytest.raises(InvalidArgumentError, match="uniqueItems"):
        constraint_for(GenerationConfig(tools=(tool,)))


def test_strict_refuses_what_no_end_is_known_of() -> None:
    """Random texts of it end, but not one that is written byte by byte."""
    patterns = ["^[a-z ]*cat[a-z ]*$", "^[a-z ]*dog[a-z ]*$"]
    schema = {"type": "string", "allOf": [{"pattern": pattern} for pattern in patterns]}
    assert told(schema, None) == []
    with pytest.raises(InvalidArgumentError, match="no text is known that ends an answer"):
        told(schema, True)


def test_what_forbids_everything_is_not_taken_for_what_says_nothing() -> None:
    """`not: {}` was dropped, and `true` written for it."""
    nothing = {"properties": {"x": {"not": {}}}}
    assert split(nothing, "schema").checked == (("#/properties/x", "not"),)
    assert violation(nothing, {"x": 1}) is not None
    assert split({"properties": {"x": {"not": False}}}, "schema").checked == ()


def test_what_is_enforced_is_not_checked_again() -> None:
    """A schema that jsonschema cannot read would make every answer an error."""
    assert violation({"type": "string", "pattern": r"^\p{L}$"}, "x") is None
    assert violation({**SCHEMA, "minProperties": 1}, BAD) is not None


def test_a_schema_that_nothing_can_be_checked_against_is_refused_before_work() -> None:
    """Checking would raise an error of its own, after all the work."""
    schema = {"type": "array", "uniqueItems": True, "not": {"minItems": "two"}}
    with pytest.raises(InvalidArgumentError, match="'two' is not of type"):
        told(schema, None)


NO_SCHEMAS: list[Any] = [
    {"required": True, "not": {"type": "null"}},
    {"type": "object", "not": {"anyOf": 3}},
    {"dependencies": {"a": 3}},
    {"oneOf": [1, 2]},
    {
        "type": "object",
        "additionalProperties": False,
        "properties": {"a": {}},
        "minProperties": 1.5,
    },
    {"type": "array", "items": {"enum": 3}, "uniqueItems": True},
    {"$ref": 3},
]


@pytest.mark.parametrize("schema", NO_SCHEMAS, ids=str)
def test_what_is_no_schema_is_refused_by_name(schema: Any) -> None:
    """Reading keywords that are not formed as they should be was an error of Python's."""
    with pytest.raises(InvalidArgumentError, match="cannot be guaranteed at #"):
        told(schema, False)


def test_checking_fetches_nothing_and_lets_nothing_through() -> None:
    """jsonschema would fetch what a reference names, from wherever a schema says."""
    schema = {"type": "array", "not": {"$ref": "http://127.0.0.1:9/schema.json"}}
    assert "cannot be checked" in str(violation(schema, [1]))


# LangChain


@methods
def test_langchain_gives_its_own_parsing_error(method: Any) -> None:
    chat = ChatSafe(drafter=member(written(BAD, method)), strict=False)
    structured = chat.with_structured_output(Tags, method=method)
    with pytest.raises(OutputParserException, match=BROKEN):
        structured.invoke("x")
    with pytest.raises(OutputParserException, match=BROKEN):
        list(structured.stream("x"))
    raw = chat.with_structured_output(Tags, method=method, include_raw=True).invoke("x")
    assert raw["parsed"] is None
    assert BROKEN in str(raw["parsing_error"])


@methods
def test_langchain_gives_what_breaks_nothing(method: Any) -> None:
    chat = ChatSafe(drafter=member(written(GOOD, method)))
    structured = chat.with_structured_output(Tags, method=method, strict=False)
    assert structured.invoke("x") == Tags(tags={"a", "b"})


@methods
def test_langchain_refuses_under_strict(method: Any) -> None:
    drafter = member(written(GOOD, method))
    for chat, said in (
        (ChatSafe(drafter=drafter), True),
        (ChatSafe(drafter=drafter, strict=True), None),
    ):
        structured = chat.with_structured_output(Tags, method=method, strict=said)
        with pytest.raises(InvalidArgumentError, match="uniqueItems"):
            structured.invoke("x")
    assert not drafter.sessions


@methods
def test_langchain_reads_strict_where_openai_has_it(method: Any) -> None:
    schema = {"name": "Tags", "strict": True, "schema": SCHEMA}
    chat = ChatSafe(drafter=member("x"))
    with pytest.raises(InvalidArgumentError, match="uniqueItems"):
        chat.with_structured_output(schema, method=method).invoke("x")


@methods
def test_langchain_what_the_class_does_not_take_is_a_parsing_error(method: Any) -> None:
    """A call's was a bare ValidationError, which handlers of parsing errors do not know."""

    class Even(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def _even(cls, n: int) -> int:
            if n % 2:
                raise ValueError("odd")
            return n

    text = call({"n": 3}, "Even") if method == "function_calling" else '{"n": 3}'
    with pytest.raises(OutputParserException, match="odd"):
        ChatSafe(drafter=member(text)).with_structured_output(Even, method=method).invoke("x")


def test_langchain_a_call_that_breaks_its_schema_is_never_carried_out() -> None:
    chat = ChatSafe(drafter=member(call(BAD))).bind_tools([Tags], strict=False)
    answer = chat.invoke("x")
    assert answer.tool_calls == []
    assert [c["name"] for c in answer.invalid_tool_calls] == ["Tags"]
    assert answer.response_metadata["finish_reason"] == "stop"
    assert BROKEN in answer.response_metadata["schema_violation"]
    streamed = None
    for chunk in chat.stream("x"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None and streamed.tool_calls == []


# LlamaIndex


def test_llama_index_raises_a_typed_error() -> None:
    llm = SafeLLM(drafter=member(call(BAD)), strict=False)
    with pytest.raises(SchemaViolationError, match=BROKEN):
        llm.structured_predict(Tags, PromptTemplate("x"))
    with pytest.raises(SchemaViolationError, match=BROKEN):
        list(llm.stream_structured_predict(Tags, PromptTemplate("x")))
    plain = SafeLLM(drafter=member(json.dumps(BAD)), response_format=Tags, strict=False)
    with pytest.raises(SchemaViolationError, match=BROKEN):
        plain.complete("x")
    with pytest.raises(SchemaViolationError, match=BROKEN):
        list(plain.stream_complete("x"))


def test_llama_index_gives_what_breaks_nothing() -> None:
    llm = SafeLLM(drafter=member(call(GOOD)), strict=False)
    assert llm.structured_predict(Tags, PromptTemplate("x")) == Tags(tags={"a", "b"})


def test_llama_index_refuses_under_strict() -> None:
    drafter = member(json.dumps(GOOD))
    with pytest.raises(Exception, match="uniqueItems can only be checked"):
        SafeLLM(drafter=drafter, response_format=Tags, strict=True).complete("x")
    assert not drafter.sessions


# Command line


@pytest.fixture
def schema_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    engine = SafeEngine(member(json.dumps(BAD)))
    monkeypatch.setattr(cli_options, "open_engine", lambda *args: engine)
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    return file


def test_the_command_line_checks_or_refuses(schema_file: Path) -> None:
    options = ("generate", "x", "--quiet", "--json-schema", str(schema_file))
    checked = CliRunner().invoke(app, [*options, "--no-strict"])
    assert checked.exit_code == 1
    assert json.loads(checked.stdout) == BAD
    assert "/tags breaks the schema" in checked.stderr
    refused = CliRunner().invoke(app, [*options, "--strict"])
    assert refused.exit_code == 2
    assert "uniqueItems can only be checked" in refused.stderr


@pytest.fixture
def two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose tokens are known, and one that is not there."""

    def inspect(spec: ModelSpec, tell: Progress) -> ModelReport:
        if spec.source == "missing":
            return ModelReport(spec.source, problem="it is not there")
        return ModelReport(spec.source, tokens=member("").tokens)

    monkeypatch.setattr(inspection, "inspect_model", inspect)


@pytest.mark.usefixtures("two_models")
def test_the_schema_command_tells_what_is_enforced(schema_file: Path) -> None:
    for source in (str(schema_file), f"{__name__}:Tags"):
        options = ("--json", "--drafter", "here", "--verifier", "there")
        shown = CliRunner().invoke(app, ["schema", source, *options])
        document = json.loads(shown.stdout)
        assert document["checked"] == [{"at": "#/properties/tags", "keyword": "uniqueItems"}]
        assert document["enforced"]["properties"]["tags"]["type"] == "array"
        assert document["smallest"] == '{"tags": []}'
        told = [(m["name"], m["role"], m["tokens"]) for m in document["models"]]
        assert told == [("here", "drafter", 13), ("there", "verifier", 13)]
    wrong = CliRunner().invoke(app, ["schema", "json:nothing"])
    assert wrong.exit_code == 2 and "it has no JSON schema" in wrong.stderr


@pytest.mark.usefixtures("two_models")
def test_the_schema_command_shows_tables_that_fit(schema_file: Path) -> None:
    part = {"type": "string", "format": "colour", "title": "T", "minLength": 2, "not": {"enum": []}}
    schema_file.write_text(json.dumps({"properties": {"a long name of a property" * 3: part}}))
    shown = CliRunner().invoke(app, ["schema", str(schema_file), "--drafter", "here"])
    words = shown.stdout.split()
    assert words.count("type,") == 1 and "minLength" in words and "not" in words
    assert "format" not in words and "title" not in words
    assert "here" in words and max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.usefixtures("two_models")
def test_the_schema_command_without_models(schema_file: Path) -> None:
    shown = CliRunner().invoke(app, ["schema", str(schema_file), "--drafter", "missing"])
    assert shown.exit_code == 1
    assert '{"tags": []}' in shown.stdout and "it is not there" in shown.stdout


# Compiled once


def test_a_schema_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer compiled it anew, for itself and for each model: up to seconds before a token."""
    compiled: list[str] = []
    make, validate = constraints._matcher, constraints._refusal.__wrapped__
    monkeypatch.setattr(
        constraints, "_matcher", lambda *args: compiled.append(args[1]) or make(*args)
    )
    engine = SafeEngine(member('{"once": 1}'))
    schema = {"properties": {"once": {"type": "integer"}}, "required": ["once"]}
    options = GenerationConfig(response_format=JsonSchema(schema=schema))
    for _ in range(3):
        assert engine.complete("x", options).text == '{"once": 1}'
    assert len([lark for lark in compiled if "once" in lark]) == 1
    assert validate is not None
    before = constraints._refusal.cache_info().misses
    split({**schema, "title": "says nothing"}, "schema")
    assert constraints._refusal.cache_info().misses == before


def test_compiling_makes_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest schemas take seconds; other answers must not."""
    started, go_on = threading.Event(), threading.Event()
    make = constraints._matcher

    def slow(tokenizer: Any, lark: str) -> Any:
        if "slow" in lark:
            started.set()
            assert go_on.wait(60)
        return make(tokenizer, lark)

    monkeypatch.setattr(constraints, "_matcher", slow)
    engine = SafeEngine(member('"a"'))

    def answer(constant: str) -> str:
        wanted = JsonSchema(schema={"enum": ["a", constant]})
        return engine.complete("x", GenerationConfig(response_format=wanted)).text

    assert answer("first") == '"a"'
    waiting = threading.Thread(target=answer, args=("slow",))
    waiting.start()
    try:
        assert started.wait(60)
        assert answer("quick") == '"a"'
        assert waiting.is_alive()
    finally:
        go_on.set()
        waiting.join()
