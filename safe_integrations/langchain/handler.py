"""A callback handler that shows on a terminal how an answer is being made."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from safe_integrations.engine.events import Verdict
from safe_integrations.langchain.answer import METADATA, PROVIDER
from safe_integrations.report.payloads import ENSEMBLE, VERIFICATION

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES: Final[dict[str, str]] = {
    Verdict.CONFIRMED: "underline cyan",
    Verdict.CHANGED: "bold black on yellow",
    Verdict.UNSAFE: "dim",
}
_RUNNERS_UP: Final = 2
"""Candidates shown besides the written one."""

_VISIBLE: Final = {c: 0x2400 + c for c in range(32)} | {10: ord("⏎"), 9: ord("⇥"), 127: 0x2421}


class SafeTraceHandler(BaseCallbackHandler):
    r"""Prints every round of an answer while it is being made.

        chat.invoke("Why is the sky blue?", config={"callbacks": [SafeTraceHandler()]})

    One line per round: its number and what was written. Below it, one line per ensemble: the
    drafter's token, what was written instead or confirmed, its merged probability, what each model
    gave it, and the runners-up. Answers that are made at the same time are told apart by the last
    characters of their run ids. Safe to use from several threads.

    Args:
        console: Where to print; None takes stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._runs: dict[UUID, _Run] = {}
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
            self._runs[run_id] = _Run(str(run_id)[-4:])
            self._print(run_id, "●", str((metadata or {}).get("ls_model_name", "")), "bold")

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Prints a round or an ensemble."""
        if name not in (VERIFICATION, ENSEMBLE):
            return
        with self._lock:
            run = self._runs.setdefault(run_id, _Run(str(run_id)[-4:]))
            if name == VERIFICATION:
                run.rounds += 1
                self._print(run_id, str(data["cycle"]), _round(data))
            else:
                self._print(run_id, "", _ensemble(data))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Prints the totals."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return
            statistics = _statistics(response)
            if statistics is not None:
                cached = "" if run.rounds else "from the cache: "
                self._print(run_id, "■", cached + _totals(statistics), "bold")
            del self._runs[run_id]

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Prints why there is no answer."""
        with self._lock:
            if run_id in self._runs:
                reason = f"stopped: {type(error).__name__} {error}".rstrip()
                self._print(run_id, "✗", reason, "red")
                del self._runs[run_id]

    def _print(self, run_id: UUID, mark: str, line: str | Text, style: str = "") -> None:
        from rich.text import Text

        several = f"{self._runs[run_id].name} " if len(self._runs) > 1 else ""
        body = line if isinstance(line, Text) else Text(line, style)
        self._console.print(Text.assemble((f"{several}{mark:>3} ", "dim"), body))


@dataclass
class _Run:
    name: str
    rounds: int = 0


def _round(data: dict[str, Any]) -> Text:
    from rich.text import Text

    line = Text()
    for piece in data["pieces"]:
        line.append(_visible(piece["written"]), _STYLES.get(piece["verdict"], ""))
    if not data["pieces"]:
        line.append("waiting for more text", "dim")
    if data["dropped"]:
        line.append(f"  {data['dropped']} drafted dropped", "dim")
    return line


def _ensemble(data: dict[str, Any]) -> Text:
    from rich.text import Text

    line = Text.assemble(("↳ ", "dim"))
    changed = data["verdict"] == Verdict.CHANGED
    if changed:
        line.append(_quoted(data["proposed"])).append(" → ")
    line.append(_quoted(data["written"]), _STYLES[data["verdict"]])
    line.append("" if changed else " confirmed")
    names = [vote["model"] for vote in data["votes"]]
    others = []
    for candidate in data["candidates"]:
        if candidate["text"] != data["written"]:
            others.append(f"{_quoted(candidate['text'])} {candidate['probability']:.0%}")
            continue
        shares = [f"{p:.0%}" for p in candidate["by_model"]]
        if len(names) == len(shares):
            shares = [f"{name} {p}" for name, p in zip(names, shares, strict=True)]
        line.append(f"  {candidate['probability']:.0%} ({', '.join(shares)})")
    if others:
        line.append(f"  before {', '.join(others[:_RUNNERS_UP])}", "dim")
    return line


def _totals(statistics: dict[str, Any]) -> str:
    models = ", ".join(f"{m['name']} {m['seconds']:.2f} s" for m in statistics["models"])
    return (
        f"{statistics['tokens']} tokens in {statistics['cycles']} rounds, "
        f"{statistics['ensembled_ratio']:.0%} ensembled, "
        f"{statistics['acceptance']:.0%} accepted, {statistics['seconds']:.2f} s ({models}), "
        f"finish: {statistics['finish_reason']}"
    )


def _statistics(response: LLMResult) -> dict[str, Any] | None:
    for generation in (g for several in response.generations for g in several):
        if isinstance(generation, ChatGeneration):
            found = generation.message.response_metadata.get(METADATA)
            if isinstance(found, list):
                return dict(found[-1])
    return None


def _visible(text: str) -> str:
    return text.translate(_VISIBLE)


def _quoted(text: str) -> str:
    return f"“{_visible(text)}”"
