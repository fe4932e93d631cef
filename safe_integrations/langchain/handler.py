"""A callback handler that shows on a terminal how an answer is being made."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from safe_integrations.engine.events import Piece, Statistics
from safe_integrations.langchain.answer import METADATA, PROVIDER
from safe_integrations.report.payloads import ENSEMBLE, MODEL_LOST, VERIFICATION, load
from safe_integrations.report.verdicts import facts, short

if TYPE_CHECKING:
    from safe_integrations.report.terminal import Console, Text


class SafeTraceHandler(BaseCallbackHandler):
    r"""Prints every round of an answer while it is being made.

        chat.invoke("Why is the sky blue?", config={"callbacks": [SafeTraceHandler()]})

    One line per round: its number and what was written. Below it, one line per ensemble: the
    draft, what was written instead or confirmed, its merged probability, what each model gave it,
    and the runners-up; where a model was drawn to write it, which. A line, too, where a verifier's
    server failed and the answer goes on without it. Answers that are made at the
    same time are told apart by the last characters of their run ids. Safe to use from several
    threads.

    Args:
        console: Where to print; None takes stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        from safe_integrations.report import terminal  # rich, which an application may not need

        self._terminal = terminal
        self._console = console or terminal.err()
        self._rounds: dict[UUID, int] = {}  # of every answer that is being made
        self._lock = threading.Lock()

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints which models are about to answer."""
        if (metadata or {}).get("ls_provider") != PROVIDER:
            return
        with self._lock:
            self._rounds[run_id] = 0
            self._print(run_id, "●", str((metadata or {}).get("ls_model_name", "")), "bold")

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Prints a round or an ensemble, or which model is lost."""
        if name not in (VERIFICATION, ENSEMBLE, MODEL_LOST):
            return
        with self._lock:
            if name == MODEL_LOST:
                self._print(run_id, "", self._terminal.lost_line(data["model"], data["reason"]))
            elif name == VERIFICATION:
                self._rounds[run_id] = self._rounds.get(run_id, 0) + 1
                pieces = [load(Piece, piece) for piece in data["pieces"]]
                line = self._terminal.round_line(pieces, data["dropped"])
                self._print(run_id, str(data["cycle"]), line)
            else:
                self._print(run_id, "", self._terminal.ensemble_line(load(Piece, data)))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Prints the totals."""
        with self._lock:
            statistics = _statistics(response)
            if statistics is not None and run_id in self._rounds:
                cached = "" if self._rounds[run_id] else "from the cache: "
                self._print(run_id, "■", cached + _totals(statistics), "bold")
            self._rounds.pop(run_id, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Prints why there is no answer."""
        with self._lock:
            if run_id in self._rounds:
                reason = f"stopped: {type(error).__name__} {error}".rstrip()
                self._print(run_id, "✗", reason, "red")
                del self._rounds[run_id]

    def _print(self, run_id: UUID, mark: str, line: str | Text, style: str = "") -> None:
        several = f"{str(run_id)[-4:]} " if len(self._rounds) > 1 else ""
        self._console.print(self._terminal.marked(f"{several}{mark:>3} ", line, style))


def _totals(data: dict[str, Any]) -> str:
    statistics = load(Statistics, data)
    models = ", ".join(f"{short(m.name)} {m.seconds:.2f} s" for m in statistics.models)
    return f"{facts(statistics, data['finish_reason'])} ({models})"


def _statistics(response: LLMResult) -> dict[str, Any] | None:
    for generation in (g for several in response.generations for g in several):
        if isinstance(generation, ChatGeneration):
            found = generation.message.response_metadata.get(METADATA)
            if isinstance(found, list):
                return dict(found[-1])
    return None
