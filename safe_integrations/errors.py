"""Every error the package raises on purpose.

SafeError
├── InvalidArgumentError   (ValueError)         an argument is wrong: names it, says what to do
├── ContextWindowError                          the prompt does not fit the smallest model
├── GenerationError        (RuntimeError)       a model failed while it computed
│   └── ServerError                             a server did not answer as it must
├── GenerationCancelled                         the caller asked to stop
│   └── SafeTimeoutError   (TimeoutError)       the answer took longer than it may
├── MissingDependencyError (ImportError)        an extra of the package is not installed
├── IncompleteAnswerError                       a tool call or an object was cut off
│   └── SchemaViolationError                    it breaks what could only be checked
└── ModelError
    ├── ModelNotFoundError (FileNotFoundError)  nothing at that hub id, folder or file
    ├── ModelLoadError     (RuntimeError)       found, but unreadable or damaged
    ├── UnsupportedModelError                   its cache cannot be cut back
    └── UnsupportedTokenizerError               its tokens cannot be mapped to bytes
"""

from __future__ import annotations

from typing import Any


class SafeError(Exception):
    """Base of all errors raised by this package."""


class InvalidArgumentError(SafeError, ValueError):
    """An argument has a value that cannot be used.

    Args:
        argument: Name of the argument as the caller wrote it.
        given: The offending value.
        remedy: What to pass instead, as a sentence fragment.
    """

    def __init__(self, argument: str, given: object, remedy: str) -> None:
        self.argument = argument
        self.given = given
        self.remedy = remedy
        super().__init__(f"{argument}={_short(given)}: {remedy}")

    def __reduce__(self) -> tuple[type[InvalidArgumentError], tuple[str, object, str]]:
        return type(self), (self.argument, self.given, self.remedy)


class ContextWindowError(SafeError):
    """The prompt leaves no room for an answer in at least one model.

    It is no `ValueError`: frameworks take these for answers that may be left out.

    Args:
        model: Name of the model whose window is too small.
        prompt_tokens: Length of the prompt in that model's tokens.
        context_window: Tokens the model can hold, prompt and answer together.
    """

    def __init__(self, model: str, prompt_tokens: int, context_window: int) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window
        super().__init__(
            f"the prompt is {prompt_tokens} tokens long for {model}, whose context window is "
            f"{context_window}: shorten the prompt, or leave this model out of the ensemble"
        )

    def __reduce__(self) -> tuple[type[ContextWindowError], tuple[str, int, int]]:
        return type(self), (self.model, self.prompt_tokens, self.context_window)


class GenerationError(SafeError, RuntimeError):
    """A model failed while it computed."""


class ServerError(GenerationError):
    """A server did not do what it was asked for.

    Args:
        model: Name of the model that it computes.
        problem: What was wrong.
        remedy: What to do, as a sentence fragment.
        status: The HTTP status that it answered with; None where it did not answer.
    """

    def __init__(self, model: str, problem: str, remedy: str, status: int | None = None) -> None:
        self.model = model
        self.problem = problem
        self.remedy = remedy
        self.status = status
        answered = "" if status is None else f" (status {status})"
        super().__init__(f"{model}: {problem}{answered}; {remedy}")

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str, str, int | None]]:
        return type(self), (self.model, self.problem, self.remedy, self.status)


class GenerationCancelled(SafeError):
    """The caller stopped a running generation."""

    def __init__(self, message: str = "the generation was cancelled") -> None:
        super().__init__(message)


class SafeTimeoutError(GenerationCancelled, TimeoutError):
    """The answer was not complete after `timeout` seconds."""


class IncompleteAnswerError(SafeError):
    """A tool call or an object that was asked for was cut off, or is broken otherwise.

    It is no `ValueError`: frameworks take these for answers that may be left out.

    Args:
        message: What is missing.
        closed: The object as max_tokens has brought it to its end: valid, and not what was meant.
            None where there is none.
    """

    def __init__(self, message: str, closed: dict[str, Any] | None = None) -> None:
        self.closed = closed
        super().__init__(message)


class SchemaViolationError(IncompleteAnswerError):
    """A finished answer or call breaks a part of its schema that the grammar did not enforce."""


class MissingDependencyError(SafeError, ImportError):
    """Something was asked for that needs a library which is not installed.

    Args:
        feature: What was asked for.
        library: What it needs.
        extra: The extra of this package that brings the library.
    """

    def __init__(self, feature: str, library: str, extra: str) -> None:
        self.feature = feature
        self.library = library
        self.extra = extra
        super().__init__(f'{feature} needs {library}: pip install "safe-integrations[{extra}]"')

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        return type(self), (self.feature, self.library, self.extra)


class ModelError(SafeError):
    """A model could not be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no model at the given hub id, folder or file."""


class ModelLoadError(ModelError, RuntimeError):
    """The model was found but could not be read."""


class UnsupportedModelError(ModelError):
    """The model's KV cache cannot be cut back after a rejected draft."""


class UnsupportedTokenizerError(ModelError):
    """The tokenizer's tokens cannot be mapped to bytes one by one."""


class LargeModelWarning(UserWarning):
    """A model is about to take much more disk and memory than its file; it says how much."""


class UnknownSplittingWarning(UserWarning):
    """A GGUF file does not say, or not so that we know, how its tokenizer splits text."""


class UnenforcedSchemaWarning(UserWarning):
    """Parts of a schema are not enforced, only checked on the finished answer; it names them."""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
