"""Many calls of both adapters at the same time, of which some finish, some fail, some are left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest
from llama_index.core.llms import ChatMessage

from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.models.transformers.member import TransformersMember, TransformersSession

SYNC: Final = ("invoke", "stream", "complete", "stream_chat")
ASYNC: Final = ("ainvoke", "astream", "acomplete", "astream_chat")
BATCHES: Final = ("batch", "abatch", "batch_as_completed")
SCHEMA: Final = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 99}, "wise": {"type": "boolean"}},
    "required": ["age", "wise"],
}
LEFT = "left"


@dataclass(frozen=True)
class Question:
    """One call.

    Attributes:
        texts: What is asked; those of one batch are asked together.
        way: By which method.
        fate: `finishes`, `is left` (after `delay` seconds, or so many chunks), `times out`,
            `is wrong`.
        options: Of the call.
        delay: See `fate`.
    """

    texts: tuple[str, ...]
    way: str
    fate: str
    options: dict[str, Any]
    delay: float = 0.0


def questions(
    texts: Sequence[str], tokens: int, rng: random.Random, longest: float, batch_size: int
) -> list[Question]:
    """Calls with these texts, a third of them left; so many texts at a time to the batches."""
    asked = []
    rest = list(texts)
    for way in BATCHES:
        batch, rest = tuple(rest[:batch_size]), rest[batch_size:]
        asked.append(Question(batch, way, "finishes", {"max_tokens": tokens}))
    fates = ["is left"] * (len(texts) // 3) + ["is wrong"] * (len(texts) // 12)
    fates += ["finishes"] * (len(rest) - len(fates))
    rng.shuffle(fates)
    for nth, (text, fate) in enumerate(zip(rest, fates, strict=True)):
        way = (SYNC + ASYNC)[nth % 8]
        options: dict[str, Any] = {"max_tokens": tokens}
        if nth % 5 == 1:
            options["response_format"] = {"type": "json_schema", "schema": SCHEMA}
            options["max_tokens"] = tokens + 16
        elif nth % 5 in (2, 4):
            options |= {"temperature": 0.8, "seed": nth, "top_p": 0.9}
        if fate == "is wrong":
            options |= {"temperature": -1} if nth % 2 else {}
            text = text if nth % 2 else "long " * 10_000
        delay = rng.uniform(0, longest)
        if fate == "is left" and way in ("invoke", "complete"):
            fate, options["timeout"] = "times out", delay + 1e-4
        asked.append(Question((text,), way, fate, options, delay))
    return asked


class Both:
    """Both adapters on the same models."""

    def __init__(self, members: Sequence[Any]) -> None:
        options: dict[str, Any] = {
            "drafter": members[0], "verifiers": tuple(members[1:]),
            "lookahead": 5, "prompt_lookup": False,
        }  # fmt: skip
        self.chat = ChatSafe(**options)
        self.llm = SafeLLM(**options)

    def alone(self, question: Question) -> list[str]:
        """What the call writes when there is no other."""
        options = {k: v for k, v in question.options.items() if k != "timeout"}
        return [str(self.chat.invoke(text, **options).content) for text in question.texts]

    def ask(self, question: Question) -> list[str] | str:
        """What a call writes that blocks."""
        (text, *more), options = question.texts, question.options
        if question.way == "batch":
            return [str(m.content) for m in self.chat.batch(list(question.texts), **options)]
        if question.way == "batch_as_completed":
            done = dict(self.chat.batch_as_completed(list(question.texts), **options))
            return [str(done[nth].content) for nth in range(1 + len(more))]
        if question.way == "invoke":
            return [str(self.chat.invoke(text, **options).content)]
        if question.way == "complete":
            return [self.llm.complete(text, **options).text]
        written = ""
        if question.way == "stream":
            chunks: Any = self.chat.stream(text, **options)
        else:
            chunks = self.llm.stream_chat([ChatMessage(text)], **options)
        with closing(chunks):
            for nth, chunk in enumerate(chunks):
                if question.fate == "is left" and nth > 40 * question.delay:
                    return LEFT
                written += str(chunk.content) if question.way == "stream" else chunk.delta or ""
        return [written]

    async def aask(self, question: Question) -> list[str]:
        """What a call writes that leaves the event loop free."""
        text, options = question.texts[0], question.options
        if question.way == "abatch":
            return [str(m.content) for m in await self.chat.abatch(list(question.texts), **options)]
        if question.way == "ainvoke":
            return [str((await self.chat.ainvoke(text, **options)).content)]
        if question.way == "acomplete":
            return [(await self.llm.acomplete(text, **options)).text]
        if question.way == "astream":
            return ["".join([str(c.content) async for c in self.chat.astream(text, **options)])]
        chunks = await self.llm.astream_chat([ChatMessage(text)], **options)
        return ["".join([chunk.delta or "" async for chunk in chunks])]

    async def ask_all(self, asked: Sequence[Question]) -> list[list[str] | str | Exception]:
        """All at the same time: what they write, or LEFT, or their errors."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(len(asked)) as pool:

            async def one(question: Question) -> list[str] | str | Exception:
                try:
                    if question.way in (*SYNC, "batch", "batch_as_completed"):
                        return await loop.run_in_executor(pool, self.ask, question)
                    task = asyncio.create_task(self.aask(question))
                    if question.fate == "is left":
                        await asyncio.sleep(question.delay)
                        task.cancel()
                    return await task
                except asyncio.CancelledError:
                    return LEFT
                except Exception as error:
                    return error

            return await asyncio.gather(*map(one, asked))


class Open:
    """Sessions that are open."""

    def __init__(self) -> None:
        self.sessions: set[int] = set()
        self.opened = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """From here on."""
        start, close = TransformersMember.start, TransformersSession.close

        def starting(*args: Any, **kwargs: Any) -> TransformersSession:
            session = start(*args, **kwargs)
            self.opened += 1
            self.sessions.add(id(session))
            return session

        def closing_(session: TransformersSession) -> None:
            close(session)
            self.sessions.discard(id(session))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TransformersMember, "start", starting)
            patch.setattr(TransformersSession, "close", closing_)
            yield
