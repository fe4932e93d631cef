"""Reasoning in front of an answer: a text of its own that costs the answer nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from llama_index.core.base.llms.types import ChatMessage, ThinkingBlock

from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema
from safe_integrations.engine.events import Event, Finished, Reasoned, TextDelta, Verified
from safe_integrations.engine.model import Reasoning, never
from safe_integrations.errors import ContextWindowError, InvalidArgumentError
from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.report.payloads import GENERATION_END, VERIFICATION, reported
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows
from tests.cut_off import doubtful

THOUGHT = "Paris is the capital, <tool_call> or not."
ANSWER = "It is Paris."


class Thinker(ScriptedMember):
    """Writes one text where it is to reason, and another where it is to answer.

    Its closing tag is its own: `end`. What it read of others' reasoning is kept in `read`.
    """

    def __init__(
        self,
        name: str,
        thought: str = THOUGHT,
        answer: str = ANSWER,
        *,
        end: str = "</think>",
        own: bool = True,
        words: Sequence[bytes] = (),
        **options: Any,
    ) -> None:
        super().__init__(name, words, follows(b""), **options)
        self.thought, self.answer, self.end, self.own = thought, answer, end, own
        self.prompts: list[Sequence[int]] = []
        self.conversations: list[Any] = []

    def render(self, messages: Any, *args: Any) -> list[int]:
        self.conversations.append(messages)
        return super().render(messages, *args)

    def reason(self, messages: Any, *args: Any) -> Reasoning:
        closing = self.tokens.encode(f"\n{self.end}\n".encode())
        return Reasoning([*self.render(messages, *args), 1], self.end, closing, self.own)

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> ScriptedSession:
        self.prompts.append(prompt)
        thinking = len(prompt) < 9
        text = self.thought + self.end + "\nno more" if thinking else self.answer
        self.script = doubtful(follows(text.encode()))
        one = ScriptedMember(self.name, [], self.script)
        one.tokens = self.tokens
        self.sessions.append(ScriptedSession(one))
        return self.sessions[-1]


def pair(**options: Any) -> tuple[Thinker, Thinker]:
    other = Thinker("verifier", end="[/think]", own=False, words=[b"Par", b"is the"], **options)
    return Thinker("drafter", words=[b"Paris", b" capital"], **options), other


def events_of(*options: Any, members: Any = None, **more: Any) -> list[Event]:
    drafter, *verifiers = members or pair()
    engine = SafeEngine(drafter, verifiers, *options)
    return list(engine.generate("x", GenerationConfig(**{"reasoning": True, **more})))


def said(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def reasoned(events: Sequence[Event]) -> list[Event]:
    return [event.event for event in events if isinstance(event, Reasoned)]


@pytest.mark.parametrize("lookahead", [1, 8])
@pytest.mark.parametrize("temperature", [0, 1])
def test_reasoning_comes_first_and_apart(lookahead: int, temperature: float) -> None:
    config = EnsembleConfig(lookahead=lookahead)
    events = events_of(config, temperature=temperature, seed=3)
    thinking = reasoned(events)
    assert said(events) and said(thinking)
    if not temperature:
        assert (said(events), said(thinking)) == (ANSWER, THOUGHT)
    assert any(isinstance(event, Verified) and event.pieces for event in thinking)
    last = events[-1]
    assert isinstance(last, Finished) and isinstance(thinking[-1], Finished)
    assert last.statistics.reasoning_tokens == thinking[-1].statistics.tokens > 20
    assert all(isinstance(event, Reasoned) for event in events[: len(thinking)])


def test_every_model_reads_the_reasoning_behind_its_own_prompt_and_closed_its_own_way() -> None:
    members = pair()
    events_of(members=members)
    for member in members:
        before, after = member.prompts
        rest = b"".join(member.tokens.symbol(i) for i in after[len(before) :])
        assert after[: len(before)] == before
        assert rest.decode() == f"{THOUGHT}\n{member.end}\n"


def test_its_budget_ends_it_and_the_answer_has_its_own() -> None:
    events = events_of(reasoning=7, max_tokens=4)
    finished = [e for e in [*events, *reasoned(events)] if isinstance(e, Finished)]
    answer, thinking = (event.statistics.tokens for event in finished)
    assert (thinking, answer) == (7, 4)
    assert THOUGHT.startswith(said(reasoned(events))) and said(events) == ANSWER[:4]


def test_the_answer_keeps_its_room_in_every_window() -> None:
    members = pair(context_window=60)
    events = events_of(members=members, max_tokens=20)
    assert said(events) == ANSWER and len(said(reasoned(events))) < len(THOUGHT)
    with pytest.raises(ContextWindowError):
        events_of(members=pair(context_window=60), max_tokens=55)


def test_a_structure_that_no_longer_fits_behind_it_is_not_begun() -> None:
    """A verifier may need many more tokens for the reasoning than the drafter does."""
    pytest.importorskip("llguidance")

    class InOneToken(Thinker):
        def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> Any:
            session = super().start(prompt, cancel)
            if len(prompt) < 9:
                session._member.script = lambda text: {b"<" if text else THOUGHT.encode(): 1.0}
            return session

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = JsonSchema(schema=schema)
    options = GenerationConfig(reasoning=1, max_tokens=40, response_format=form)
    drafter = InOneToken("drafter", answer='{"a": 1}', words=[THOUGHT.encode()])
    for room in (8, 7):
        window = len(drafter.reason("x").prompt) + len(f"{THOUGHT}\n</think>\n") + room
        verifier = Thinker("verifier", answer='{"a": 1}', context_window=window)
        by_tokens = EnsembleConfig(unit="token")  # the thought is one of them
        events = SafeEngine(drafter, [verifier], by_tokens).generate("x", options)
        if room == 8:
            assert said([*events]) == '{"a": 1}'
        else:
            with pytest.raises(ContextWindowError, match="verifier"):
                list(events)


def test_a_drafter_that_cannot_reason_is_told_so() -> None:
    drafter, verifier = pair()
    with pytest.raises(InvalidArgumentError, match=r"reasoning=True.*verifier knows no reasoning"):
        events_of(members=(verifier, drafter))


@pytest.mark.parametrize("wrong", [-1, "much", 1.5])
def test_a_budget_is_a_number_of_tokens(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="reasoning"):
        GenerationConfig(reasoning=wrong)


def test_one_token_is_a_number_too() -> None:
    assert GenerationConfig(reasoning=1).reasoning is not True
    assert ChatSafe(drafter=pair()[0], reasoning=1).reasoning is not True


def test_a_structure_begins_behind_it() -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    members = [Thinker(m.name, m.thought, '{"a": 1}', own=True) for m in pair()]
    events = events_of(members=members, response_format=JsonSchema(schema=schema))
    assert json.loads(said(events)) == {"a": 1} and said(reasoned(events)) == THOUGHT


def chat(**options: Any) -> ChatSafe:
    drafter, verifier = pair()
    return ChatSafe(drafter=drafter, verifiers=[verifier], reasoning=True, **options)


async def test_langchain_shows_it_in_a_block_of_its_own() -> None:
    message = chat().invoke("x")
    assert message.text == ANSWER
    assert message.additional_kwargs["reasoning_content"] == THOUGHT
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    usage = message.usage_metadata
    assert usage["output_token_details"]["reasoning"] == (
        usage["output_tokens"] - message.response_metadata["safe"][0]["tokens"]
    )
    chunks = [chunk async for chunk in chat().astream("x")]
    texts = [c.additional_kwargs.get("reasoning_content", "") for c in chunks]
    assert len([text for text in texts if text]) > 2 and "".join(texts) == THOUGHT
    assert "".join(chunk.text for chunk in chunks) == ANSWER


def test_langchain_never_reads_calls_in_it() -> None:
    def look_up(about: str) -> str:
        """Looks something up."""
        return about

    message = chat().bind_tools([look_up]).invoke("x")
    assert not message.tool_calls and not message.invalid_tool_calls
    assert message.additional_kwargs["reasoning_content"] == THOUGHT


def test_it_goes_back_to_templates_that_want_it() -> None:
    llm = chat()
    llm.invoke([HumanMessage("x"), llm.invoke("x"), HumanMessage("y")])
    assert llm.drafter.conversations[-1][1].extra["reasoning_content"] == THOUGHT
    other = SafeLLM(drafter=Thinker("drafter"), reasoning=9)
    answer = other.chat([ChatMessage("x")]).message
    other.chat([ChatMessage("x"), answer, ChatMessage("y")])
    assert other.drafter.conversations[-1][1].extra["reasoning_content"] == THOUGHT[:9]


async def test_llama_index_shows_it_in_a_block_of_its_own() -> None:
    llm = SafeLLM(drafter=pair()[0], verifiers=[pair()[1]], reasoning=True)
    response = llm.chat([ChatMessage("x")])
    thinking, text = response.message.blocks
    assert isinstance(thinking, ThinkingBlock) and thinking.content == THOUGHT
    assert text.text == ANSWER == response.message.content
    *_, last = chunks = [c async for c in await llm.astream_chat([ChatMessage("x")])]
    deltas = [chunk.additional_kwargs.get("thinking_delta", "") for chunk in chunks]
    assert "".join(deltas) == THOUGHT
    assert last.message.blocks[0].content == THOUGHT
    assert llm.complete("x").raw["reasoning"] == THOUGHT


def test_events_tell_which_of_the_two_they_are_about() -> None:
    found = [payload for event in events_of() if (payload := reported(event))]
    rounds = [data.get("reasoning", False) for name, data in found if name == VERIFICATION]
    assert rounds[0] and not rounds[-1] and rounds == sorted(rounds, reverse=True)
    assert [name for name, _ in found].count(GENERATION_END) == 1


def test_a_result_has_both() -> None:
    drafter, verifier = pair()
    result = SafeEngine(drafter, [verifier]).complete("x", GenerationConfig(reasoning=True))
    assert (result.text, result.reasoning) == (ANSWER, THOUGHT)
    assert result.to_dict()["reasoning"] == THOUGHT


def test_an_assistants_reasoning_is_no_part_of_its_text() -> None:
    message = AIMessage("A", additional_kwargs={"reasoning_content": "R"})
    drafter = Thinker("drafter")
    ChatSafe(drafter=drafter).invoke([HumanMessage("x"), message, HumanMessage("y")])
    assert drafter.conversations[-1][1].content == "A"
