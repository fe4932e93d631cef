"""The engine as its users meet it: several models that write one answer.

Here, and only here, the parts come together: models render their prompts, a grammar is made of the
options, the loop writes, and its events add up to a result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import Any, Final, Protocol, runtime_checkable

from safe_integrations.calls.agreement import agree
from safe_integrations.calls.form import Form
from safe_integrations.calls.grammar import constraint_for
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.closing import check_room
from safe_integrations.engine.events import Event
from safe_integrations.engine.loop import write
from safe_integrations.engine.model import Limits, Member, Reasoning, never
from safe_integrations.engine.reasoning import budget_of, reason_first
from safe_integrations.engine.units import Units
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import as_messages
from safe_integrations.models.admission import Memory, in_turn
from safe_integrations.models.load import ModelSource, load_members, with_defaults
from safe_integrations.models.spec import Progress, told_apart
from safe_integrations.report.result import Result

_log: Final = logging.getLogger(__name__)


class SafeEngine:
    """Several models that write one answer.

    Args:
        drafter: The model that writes ahead: the best one on its own.
        verifiers: The models that check it. None at all is allowed.
        config: How they are merged.

    Attributes:
        agreement: How calls are written by all of them, and why.

    Raises:
        InvalidArgumentError: `config.weights` does not have one weight per model, or there is no
            form of calls called `config.tool_form`.
    """

    def __init__(
        self,
        drafter: Member,
        verifiers: Sequence[Member] = (),
        config: EnsembleConfig | None = None,
    ) -> None:
        self.config = config or EnsembleConfig()
        self.weights = self.config.weights_for(1 + len(verifiers))
        given = (drafter, *verifiers)
        names = zip(given, told_apart(member.name for member in given), strict=True)
        members = [m if m.name == name else _Renamed(m, name) for m, name in names]
        writing = members[:1] if self.config.mode == "drafter-only" else members
        taught = {m.name: m.teaches if isinstance(m, _Writer) else None for m in writing}
        self.agreement = agree(taught, self.config.tool_form)
        _log.debug("tools are called in the form %s", self.agreement)
        self.drafter, *rest = (_writing(member, self.agreement.form) for member in members)
        self.verifiers = tuple(rest)

    @cached_property
    def _units(self) -> Units | None:
        """Where units end; kept, because the models' tokens do not change."""
        mode = self.config.mode
        if self.config.unit == "token" or mode == "every-token":
            return None
        members = self.members[:1] if mode == "drafter-only" else self.members
        return Units([member.tokens for member in members])

    @property
    def members(self) -> tuple[Member, ...]:
        """All models, drafter first."""
        return (self.drafter, *self.verifiers)

    def generate(
        self,
        messages: object,
        options: GenerationConfig | None = None,
        *,
        cancel: Callable[[], bool] = never,
    ) -> Generator[Event, None, None]:
        """Answers, event by event. Closing the generator stops the work.

        Everything that can be wrong with the arguments is raised here, before any model computes.

        Args:
            messages: A prompt string, or chat messages (see `as_messages`).
            options: How this answer is made.
            cancel: Asked before every forward pass, between the parts of a long prompt, and while
                waiting for memory, whether to stop. Once it says yes the iterator raises
                `GenerationCancelled`.

        Returns:
            A generator of events that ends with `Finished`.

        Raises:
            InvalidArgumentError: The messages or the options cannot be used.
            ContextWindowError: The prompt leaves no room in some model's window.
        """
        conversation = as_messages(messages)
        members = (self.drafter,) if self.config.mode == "drafter-only" else self.members
        options = options or GenerationConfig()
        _check_limits(members, self.config, options)
        constraint = constraint_for(options, self.agreement.form)
        cursors = [None if constraint is None else constraint.cursor(m.tokens) for m in members]
        asked = (conversation, options.tools, options.template_args)
        reasonings = [member.reason(*asked) for member in members] if options.reasoning else []
        prompts = [r.prompt for r in reasonings] or [member.render(*asked) for member in members]
        for member, prompt in zip(members, prompts, strict=True):
            if not prompt:
                remedy = f"{member.name} writes them without any token; check its chat template"
                raise InvalidArgumentError("messages", messages, remedy)
        check_room(members, prompts, cursors[0], options.max_tokens)
        rest = (cursors, self.config, options, self.weights, self._units, cancel)
        if reasonings:
            events = reason_first(members, reasonings, *rest)
        else:
            events = write(members, prompts, *rest)
        return in_turn(_caches(members, prompts, reasonings, options), events, cancel)

    def complete(self, messages: object, options: GenerationConfig | None = None) -> Result:
        """Answers in one go. Arguments and errors are those of `generate`."""
        return Result.of(self.generate(messages, options))


class _Renamed:
    """A member that another one shares its name with."""

    def __init__(self, member: Member, name: str) -> None:
        self.name = name
        self._member = member

    @property
    def teaches(self) -> Form | None:
        """What a protocol asks for must stand in the class."""
        return self._member.teaches if isinstance(self._member, _Writer) else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def writing(self, form: Form) -> Member:
        return _Renamed(_writing(self._member, form), self.name)


@runtime_checkable
class _Writer(Protocol):
    """A member that knows forms of calls. Others write whatever form the rest has agreed on."""

    teaches: Form | None

    def writing(self, form: Form) -> Member: ...


def _writing(member: Member, form: Form) -> Member:
    return member.writing(form) if isinstance(member, _Writer) else member


def _caches(
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    reasonings: Sequence[Reasoning],
    options: GenerationConfig,
) -> list[tuple[Memory, int]]:
    """The most tokens that caches will hold, for each member whose memory for them is limited.

    What is written is counted in the drafter's tokens: nobody knows yet how many it is in others'.
    """
    written = options.max_tokens + budget_of(options)
    closings = [len(reasoning.closing) for reasoning in reasonings] or [0] * len(members)
    caches = []
    for member, prompt, closing in zip(members, prompts, closings, strict=True):
        memory = getattr(member, "memory", None)  # served ones have none
        if isinstance(memory, Memory):
            caches.append((memory, min(len(prompt) + closing + written, member.context_window)))
    return caches


def _check_limits(
    members: Sequence[Member], config: EnsembleConfig, options: GenerationConfig
) -> None:
    """Refuses options that need more of a distribution than some member can give."""
    for member in members:
        limits: Limits = member.limits
        if limits.top is None:
            continue
        knows = f"{member.name} tells only the probabilities of its {limits.top} best ids"
        if config.method == "gac":
            raise InvalidArgumentError("method", config.method, f"use 'unite': {knows}")
        if options.repetition_penalty != 1:
            given = options.repetition_penalty
            raise InvalidArgumentError("repetition_penalty", given, f"leave it out: {knows}")
        if options.temperature > 0 and not 1 <= options.top_k <= limits.top:
            remedy = f"set top_k to at most {limits.top}: {knows}"
            raise InvalidArgumentError("temperature", options.temperature, remedy)
        if config.union_top_k > limits.top:
            raise InvalidArgumentError("union_top_k", config.union_top_k, f"lower it: {knows}")


def load_engine(
    drafter: ModelSource | None = None,
    verifiers: Sequence[ModelSource] | None = None,
    config: EnsembleConfig | None = None,
    on_progress: Progress | None = None,
) -> SafeEngine:
    """Loads models and puts them together.

    Models given by name are loaded once per process and shared by all engines.

    Args:
        drafter: The model that writes ahead: the best one on its own. None takes the default.
        verifiers: The models that check it. None takes the default pair's verifier where the
            drafter is the default too, else none.
        config: How they are merged.
        on_progress: Told what is going on, one line at a time, by any thread.

    Raises:
        ModelError: A model cannot be found, read or used.
        InvalidArgumentError: An argument is wrong.
    """
    names = with_defaults(drafter, verifiers)
    config = config or EnsembleConfig()
    config.weights_for(len(names))  # before minutes of loading
    members = load_members(names, on_progress)
    return SafeEngine(members[0], members[1:], config)
