"""`ChatSafe` with nothing but the addresses of two real servers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.tools import tool
from pydantic import BaseModel

from safe_integrations.errors import ModelLoadError
from safe_integrations.langchain import ChatSafe, result_of
from safe_integrations.models.spec import ModelSpec
from safe_integrations.report.result import Result
from tests.served_pair import QUESTION
from tests.served_pair import expected as expected
from tests.served_pair import specs as specs
from tests.spans import Recorder
from tests.spans import instrumented as instrumented
from tests.spans import recorder as recorder


@pytest.fixture
def chat(specs: list[ModelSpec]) -> ChatSafe:
    return ChatSafe(drafter=specs[0], verifiers=specs[1:], max_tokens=8)


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.tokens: list[str] = []
        self.custom: list[tuple[str, Any, Any]] = []

    def on_chat_model_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.runs.append(run_id)

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.custom.append((name, data, run_id))


async def test_every_way_to_ask_has_the_same_answer(chat: ChatSafe, expected: Result) -> None:
    assert chat.invoke(QUESTION).content == expected.text
    chunks = list(chat.stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == expected.text
    assert len([chunk for chunk in chunks if chunk.content]) > 1
    later = [str(chunk.content) async for chunk in chat.astream(QUESTION)]
    assert "".join(later) == expected.text
    together = [*chat.batch([QUESTION, QUESTION]), *await chat.abatch([QUESTION, QUESTION])]
    assert [message.content for message in together] == 4 * [expected.text]


def test_messages_tell_what_servers_did(chat: ChatSafe, expected: Result) -> None:
    chat.attach_rounds = True
    message = chat.invoke(QUESTION)
    prompt, written = expected.statistics.models[0].prompt_tokens, expected.statistics.tokens
    usage = message.usage_metadata
    assert usage is not None
    assert (usage["input_tokens"], usage["output_tokens"]) == (prompt, written)
    assert 0 < usage["input_token_details"]["cache_read"] < prompt, "asked before"
    result = result_of(message)
    assert [piece.written for piece in result.pieces] == [p.written for p in expected.pieces]
    assert all(model.requests and model.received_bytes for model in result.statistics.models)


def test_handlers_hear_every_round(chat: ChatSafe, expected: Result) -> None:
    heard = Heard()
    list(chat.stream(QUESTION, {"callbacks": [heard]}))
    assert "".join(heard.tokens) == expected.text
    assert {run for _, _, run in heard.custom} == set(heard.runs)
    rounds = [data for name, data, _ in heard.custom if name == "safe_verification"]
    assert sum(len(data["pieces"]) for data in rounds) == expected.statistics.judged
    ensembles = [data for name, data, _ in heard.custom if name == "safe_ensemble"]
    assert len(ensembles) == expected.statistics.ensembled > 0


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
def test_under_the_span_of_a_call(chat: ChatSafe, expected: Result, instrumented: Recorder) -> None:
    chat.invoke(QUESTION)
    span = instrumented.generation()
    attributes = dict(span.attributes or {})
    assert attributes["safe.models"] == ("smollm2", "gemma3")
    assert attributes["safe.tokens"] == expected.statistics.tokens
    parent = instrumented.parent_of(span)
    assert parent is not None and parent.name == "ChatSafe"


class City(BaseModel):
    """A city."""

    name: str
    coastal: bool


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_objects_are_what_was_asked_for(chat: ChatSafe, method: Any) -> None:
    chat.max_tokens = 60
    city = chat.with_structured_output(City, method=method).invoke("Paris, France")
    assert isinstance(city, City) and city.name


async def test_a_tool_is_called(chat: ChatSafe) -> None:
    @tool
    def height_of(floors: int) -> str:
        """Tells how tall a building with some floors is."""
        return f"{3 * floors} metres"

    chat.max_tokens = 60
    bound = chat.bind_tools([height_of], tool_choice="height_of")
    message = await bound.ainvoke("How tall is a building with 7 floors?")
    (call,) = message.tool_calls
    assert call["name"] == "height_of" and call["args"].keys() == {"floors"}


def test_another_process_gets_everything_but_the_key(
    specs: list[ModelSpec], chat: ChatSafe, expected: Result
) -> None:
    drafter = specs[0].model_copy(update={"api_key": ModelSpec(**_KEY).api_key})
    keyed = ChatSafe(drafter=drafter, verifiers=specs[1:], max_tokens=8)
    assert keyed.invoke(QUESTION).content == expected.text
    written = pickle.dumps(keyed)
    for text in (written.decode("latin-1"), dumps(keyed), repr(keyed), keyed.model_dump_json()):
        assert "sesame" not in text
    assert pickle.loads(written) == chat
    assert pickle.loads(written).invoke(QUESTION).content == expected.text


_KEY: Any = {"source": "http://localhost/v1", "api_key": "sesame"}


def test_an_address_where_no_server_is(specs: list[ModelSpec]) -> None:
    """It is asked by the first call, and the error says what to do."""
    nobody = ModelSpec(source="http://127.0.0.1:9/v1", max_retries=0)
    chat = ChatSafe(drafter=specs[0], verifiers=[nobody])
    assert chat.profile is not None and "max_input_tokens" not in chat.profile
    with pytest.raises(ModelLoadError, match="127.0.0.1:9/v1/models cannot be reached"):
        chat.invoke(QUESTION)
