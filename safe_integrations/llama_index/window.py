"""What LlamaIndex plans with, and members that are not quite what their models are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from llama_index.core.base.llms.types import LLMMetadata
from pydantic import PrivateAttr, SerializerFunctionWrapHandler, model_serializer

from safe_integrations.engine.model import Member
from safe_integrations.errors import InvalidArgumentError


class Metadata(LLMMetadata):
    """Reads the window of the models only where somebody asks for it: that may take seconds.

    Args:
        window: Reads it.
        **known: All other fields.
    """

    _window: Callable[[], int] = PrivateAttr()

    def __init__(self, window: Callable[[], int], **known: Any) -> None:
        super().__init__(**known)
        self._window = window
        del self.__dict__["context_window"]

    def __getattr__(self, name: str) -> Any:
        if name != "context_window":
            return super().__getattr__(name)  # type: ignore[misc]
        return self.__dict__.setdefault(name, self._window())

    @model_serializer(mode="wrap")
    def _whole(self, dump: SerializerFunctionWrapHandler) -> Any:
        self.context_window  # noqa: B018  reads it
        return dump(self)


class Narrowed:
    """A member that is told to hold fewer tokens than it could.

    Args:
        member: The member.
        window: How many.

    Raises:
        InvalidArgumentError: It cannot hold as many.
    """

    def __init__(self, member: Member, window: int) -> None:
        if window > member.context_window:
            remedy = f"{member.name} holds {member.context_window} tokens: give no more than that"
            raise InvalidArgumentError("context_window", window, remedy)
        self.context_window = window
        self._member: Any = member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def writing(self, form: Any) -> Narrowed:
        """The same where calls have a form."""
        return Narrowed(self._member.writing(form), self.context_window)


class LeftBehind:
    """Stands for a loaded model in a pickle, which holds no weights. It cannot be used.

    LlamaIndex leaves out of a pickle what refuses to be pickled, and says nothing.

    Args:
        name: Name of the model.
    """

    render = start = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.tokens = self

    def _refuse(self) -> NoReturn:
        remedy = "a pickle holds no weights: name the model, and each process will load it"
        raise InvalidArgumentError("drafter or verifiers", self.name, remedy)

    context_window = limits = encode = property(_refuse)
