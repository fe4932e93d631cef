"""The default pair as llama.cpp computes it in this process, and how far it rounds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import pytest

from safe_integrations.messages import as_messages
from safe_integrations.models.llama_cpp.member import LlamaMember
from safe_integrations.models.load import load_member
from safe_integrations.models.spec import ModelSpec
from safe_integrations.safe_engine import SafeEngine
from tests.prompts import PROMPTS
from tests.rounding import Told, hangs_on_rounding, measure

PAIR = ("smollm2-135m", "gemma3-270m")

T = TypeVar("T")


def member_of(name: str, called: str | None = None) -> LlamaMember:
    """A member; under another name, it has cells of its own."""
    member = load_member(ModelSpec(source=name, name=called, backend="llama.cpp"))
    assert isinstance(member, LlamaMember)
    return member


@cache
def noise(name: str) -> float:
    member = member_of(name)
    ids = member.tokens.encode(" ".join(PROMPTS[1:4]).encode())[:24]
    found = measure(member.context._weights, member.render(as_messages(PROMPTS[0])), ids)
    print(name, found)
    return found


def hangs(engine: SafeEngine, prompt: str, one: Sequence[Told], other: Sequence[Told]) -> bool:
    """Whether answers of the pair, or of one of it, part at a decision that rounding can turn.

    Made again by `engine`, whose members compute here, whoever wrote the answers.
    """
    noises = [max(noise(name) for name in PAIR) for _ in engine.members]
    return hangs_on_rounding(engine, prompt, one, other, noises)


def alike(engine: SafeEngine, prompt: str, one: Sequence[Told], other: Sequence[Told]) -> None:
    """The same pieces and verdicts; skips the test where they part by rounding."""
    if list(one) != list(other):
        assert hangs(engine, prompt, one, other), (one, other)
        pytest.skip("they part at a decision that rounding can turn")


def at_once(work: Callable[[int], T], count: int) -> list[T]:
    """Everything at the same time, to the thread."""
    together = threading.Barrier(count)

    def one(nth: int) -> T:
        together.wait()
        return work(nth)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
