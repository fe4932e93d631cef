"""What is wrong with an argument is said before any work: which, what was given, what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import ContextWindowError, InvalidArgumentError, SafeError
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows


def member(window: int = 99) -> ScriptedMember:
    return ScriptedMember("m", [], follows(b"ok"), context_window=window)


def prompt(messages: Any) -> Callable[[], object]:
    return lambda: SafeEngine(member()).generate(messages)


def ensemble(**values: Any) -> Callable[[], object]:
    return lambda: EnsembleConfig(**values)


def option(**values: Any) -> Callable[[], object]:
    return lambda: GenerationConfig(**values)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


TABLE: list[tuple[str, Callable[[], object], str]] = [
    ("no messages", prompt([]), "messages.*at least one message"),
    ("number as prompt", prompt(7), "messages=7: pass a string or a list"),
    ("number as message", prompt([7]), r"messages\[0\]=7"),
    ("unknown role", prompt([{"role": "bot", "content": "x"}]), r"role='bot'.*user, assistant"),
    ("no role", prompt([{"content": "x"}]), r"messages\[0\].role=None"),
    ("no content", prompt([{"role": "user"}]), r"messages\[0\].content=None: pass text"),
    ("bytes as content", prompt(user(b"x")), r"content=b'x': pass text"),
    ("image as content", prompt(user([{"type": "image"}])), r"content=\[.*pass text"),
    ("lone surrogate", prompt("a\ud83d"), r"content='\\ud83d': character 1 is half"),
    ("second message", prompt([*user("ok"), *user("\udc00")]), r"messages\[1\].content"),
    ("surrogate in stop", option(stop="\ud83d"), "stop=.*half a surrogate pair"),
    ("empty stop", option(stop=["x", ""]), "stop=.*must not be empty"),
    ("number as stop", option(stop=3), "stop=3"),
    ("weights that sum to 1.2", ensemble(weights=(0.6, 0.6)), "weights=.*sum to 1.2"),
    ("weights that sum to 0", ensemble(weights=(0.0, 0.0)), "weights=.*sum to 0"),
    ("no weights", ensemble(weights=()), "weights=.*sum to 0"),
    ("negative weight", ensemble(weights=(1.5, -0.5)), "weights=.*not negative"),
    ("nan weight", ensemble(weights=(math.nan, 1.0)), "weights=.*finite"),
    (
        "too few weights",
        lambda: SafeEngine(member(), [member()], EnsembleConfig(weights=(1.0,))),
        "weights=.*give 2, one per model, drafter first",
    ),
    ("lookahead 0", ensemble(lookahead=0), "lookahead=0:.*from 1 to 64"),
    ("lookahead 1000", ensemble(lookahead=1000), "lookahead=1000:.*from 1 to 64"),
    ("half a lookahead", ensemble(lookahead=2.5), "lookahead=2.5:.*whole number"),
    ("unknown mode", ensemble(mode="fast"), "mode='fast':.*'every-token'"),
    ("unknown unit", ensemble(unit="word"), "unit='word':.*'text' or 'token'"),
    ("unknown method", ensemble(method="vote"), "method='vote':.*'unite' or 'gac'"),
    ("threshold below a half", ensemble(consensus_above=0.4), "consensus_above=0.4"),
    ("no union", ensemble(union_top_k=0), "union_top_k=0"),
    ("unknown ensemble option", ensemble(look_ahead=3), "look_ahead=3: there is no such option;"
     ".*lookahead"),
    ("no tokens", option(max_tokens=0), "max_tokens=0:.*greater than or equal to 1"),
    ("negative tokens", option(max_tokens=-1), "max_tokens=-1"),
    ("negative temperature", option(temperature=-0.1), "temperature=-0.1"),
    ("nan temperature", option(temperature=math.nan), "temperature=nan"),
    ("top_p 0", option(top_p=0), "top_p=0:.*greater than 0"),
    ("negative top_k", option(top_k=-1), "top_k=-1"),
    ("repetition penalty 0", option(repetition_penalty=0), "repetition_penalty=0"),
    ("negative seed", option(seed=-1), "seed=-1"),
    ("unknown option", option(max_new_tokens=3), "max_new_tokens=3: there is no such option;"
     ".*max_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_bad_argument_is_refused(call: Callable[[], object], message: str) -> None:
    """A typed error that names the argument and the value, and is a ValueError too."""
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        call()
    assert isinstance(caught.value, SafeError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize("which", [0, 1])
def test_prompt_longer_than_a_window_is_refused(which: int) -> None:
    members = [member(), member()]
    members[which] = member(window=2)
    with pytest.raises(ContextWindowError, match="5 tokens long.*window is 2: shorten"):
        SafeEngine(members[0], members[1:]).generate(user("x") * 5)


@pytest.mark.parametrize("text", ["a\0b", "\0", "", " ", "😀", "e\u0301", "\u202e", "\ufffd"])
def test_odd_but_valid_text_is_taken(text: str) -> None:
    """NUL, nothing, joined characters and text direction are a tokenizer's business."""
    result = SafeEngine(member()).complete(text, GenerationConfig(stop=(text or "none",)))
    assert result.text == "ok"


def test_nul_in_the_answer_and_in_a_stop_string() -> None:
    writes = ScriptedMember("m", [], follows(b"a\0b\0\0c"))
    result = SafeEngine(writes).complete("Go.", GenerationConfig(stop="\0\0"))
    assert (result.text, result.finish_reason) == ("a\0b", "stop")


@pytest.mark.parametrize(
    ("given", "taken"), [(None, ()), ("x", ("x",)), (["x", "y"], ("x", "y")), ([], ())]
)
def test_stop_takes_one_or_many(given: Any, taken: tuple[str, ...]) -> None:
    assert GenerationConfig(stop=given).stop == taken


def test_long_values_are_cut_in_messages() -> None:
    """An error that quotes a whole document hides what it says."""
    with pytest.raises(InvalidArgumentError) as caught:
        SafeEngine(member()).generate(user(["x" * 10_000]))
    assert len(str(caught.value)) < 200
