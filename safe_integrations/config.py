"""Every knob of the package, typed and checked: how models are merged, and how one answer is made.

`EnsembleConfig` belongs to an engine, `GenerationConfig` to a call. How a model is loaded is
`models.spec.ModelSpec`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import check_text

Mode = Literal["safe", "every-token", "drafter-only"]
Method = Literal["unite", "gac"]
Sharpening = Literal["prefix", "geometric", "none"]
JudgedBy = Literal["text", "token"]


def _no_truth_value(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("pass a number")
    return given


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
"""A whole number, and not True, of which pydantic makes 1."""

Real = Annotated[float, BeforeValidator(_no_truth_value)]
"""A number, whole or not, and not True."""


class StrictModel(BaseModel):
    """A frozen pydantic model whose errors name the argument, what was given and what to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            first = error.errors()[0]
            if isinstance(known := first.get("ctx", {}).get("error"), InvalidArgumentError):
                raise known from None
            argument = ".".join(str(part) for part in first["loc"]) or type(self).__name__
            if first["type"] == "extra_forbidden":
                names = ", ".join(type(self).model_fields)
                raise InvalidArgumentError(
                    argument, first["input"], f"there is no such option; use one of {names}"
                ) from None
            message = first["msg"].removeprefix("Value error, ")
            # of an argument that is missing pydantic shows all others, keys included
            given = None if first["type"] == "missing" else first["input"]
            raise InvalidArgumentError(argument, given, message) from None


class EnsembleConfig(StrictModel):
    """How several models become one (the paper's hyper-parameters).

    Attributes:
        mode: `safe` ensembles where it is safe and needed; `every-token` is the baseline that
            ensembles always; `drafter-only` never asks a verifier.
        unit: What is judged and merged as one: `text`, pieces of text that no token of any model
            reaches across (mostly words), so that it does not matter who drafts; or `token`, the
            drafter's tokens, as in the paper. Temperatures above 0 follow it, too. Models that all
            have the same tokens are judged by tokens either way. The mode `every-token` knows only
            tokens.
        lookahead: Tokens the drafter writes ahead of the last judged one (n, section 3.1; 5 in the
            paper), 1 to 64, or `auto` to choose by what was measured. It changes the speed, not
            the text (docs/how-it-works.md).
        prompt_lookup: Whether the drafter tries what followed the same words in its prompt or its
            answer. It changes the speed, not the text.
        method: How tokens are merged: `unite` merges the union of each model's top tokens, `gac`
            the whole vocabularies. This and the next four are about tokens, not units of text.
        union_top_k: Tokens that each model brings to the union (`unite`; also for units of text
            where all models have the same tokens).
        sharpening: What to do with a merged distribution that is too smooth (section 3.3).
        sharpen_below: A merged distribution is too smooth when its maximum is below this.
        prefix_threshold: Probability a drafter token needs to collect the mass of its
            continuations (lambda, `prefix` sharpening only).
        consensus_above: Mean probability of the drafted piece above which models agree
            (section 3.2, check b).
        weights: One per model, drafter first, summing to 1 (appendix H). None means equal.
        tool_form: How calls of tools are written: a form of `calls/forms.py`, or `auto` for the one
            that all chat templates teach, and Hermes JSON where they differ.
        on_missing: What becomes of an answer when the server of a verifier fails in the middle of
            it: `error` raises its `ServerError`; `continue` writes the rest as the other models
            would without it, and says so (`ModelLost`, `Statistics.lost`). The drafter can never be
            left out: its `ServerError` always ends the answer. Behind reasoning a verifier that was
            lost there is asked again.
    """

    mode: Mode = "safe"
    unit: JudgedBy = "text"
    lookahead: int | Literal["auto"] = "auto"
    prompt_lookup: bool = True
    method: Method = "unite"
    union_top_k: Whole = Field(default=10, ge=1, le=1000)
    sharpening: Sharpening = "prefix"
    sharpen_below: Real = Field(default=0.5, ge=0, le=1)
    prefix_threshold: Real = Field(default=0.1, ge=0, le=1)
    consensus_above: Real = Field(default=0.5, ge=0.5, le=1)
    weights: tuple[float, ...] | None = None
    tool_form: str = "auto"
    on_missing: Literal["error", "continue"] = "error"

    @field_validator("lookahead", mode="before")
    @classmethod
    def _lookahead_in_range(cls, lookahead: Any) -> Any:
        if isinstance(lookahead, str) and lookahead.isdecimal():
            lookahead = int(lookahead)
        if lookahead != "auto" and (type(lookahead) is not int or not 1 <= lookahead <= 64):
            raise ValueError("lookahead must be 'auto' or a whole number from 1 to 64")
        return lookahead

    @model_validator(mode="after")
    def _rule_knows_its_options(self) -> Self:
        if self.unit == "text" and self.mode != "every-token":
            for name in ("method", "sharpening", "sharpen_below", "prefix_threshold"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    remedy = (
                        "it belongs to judging by tokens; set unit='token' too, or leave it out"
                    )
                    raise InvalidArgumentError(name, getattr(self, name), remedy)
        return self

    @field_validator("weights")
    @classmethod
    def _weights_sum_to_one(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None:
            if any(not math.isfinite(w) or w < 0 for w in weights):
                raise ValueError("weights must be finite and not negative")
            if not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
                raise ValueError(f"weights must sum to 1, these sum to {math.fsum(weights):g}")
        return weights

    def weights_for(self, models: int) -> tuple[float, ...]:
        """One weight per model.

        Raises:
            InvalidArgumentError: The number of weights is not the number of models.
        """
        if self.weights is None:
            return (1 / models,) * models
        if len(self.weights) != models:
            raise InvalidArgumentError(
                "weights", self.weights, f"give {models}, one per model, drafter first"
            )
        return self.weights


class JsonSchema(StrictModel):
    """The answer is JSON that validates against a schema.

    Attributes:
        schema_: The schema.
        strict: What to do with what a grammar cannot enforce of it (`not`, `if`, ...): True refuses
            the schema before any work, None warns of it, once, and has it checked on the finished
            answer, False does so without the warning.
    """

    type: Literal["json_schema"] = "json_schema"
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class Regex(StrictModel):
    """The whole answer matches a regular expression."""

    type: Literal["regex"] = "regex"
    pattern: str


class Grammar(StrictModel):
    """The answer is a sentence of a Lark grammar, as the llguidance library reads it."""

    type: Literal["grammar"] = "grammar"
    lark: str


class Choice(StrictModel):
    """The answer is one of several texts."""

    type: Literal["choice"] = "choice"
    options: tuple[str, ...] = Field(min_length=1)


ResponseFormat = Annotated[JsonSchema | Regex | Grammar | Choice, Field(discriminator="type")]


class Tool(StrictModel):
    """A function that a model may ask its caller to run.

    Attributes:
        name: How the model calls it.
        description: What it does, for the model to read.
        parameters: JSON schema of its arguments, an object.
        strict: What to do with what a grammar cannot enforce of it, as in `JsonSchema`. A call
            that breaks such a part is invalid.
    """

    name: str = Field(pattern=r"^[\w.-]{1,128}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


class GenerationConfig(StrictModel):
    """How one answer is made.

    Attributes:
        max_tokens: Most tokens to generate, counted in the drafter's tokens.
        stop: Texts that end the answer; the first to be completed wins and is not shown.
        temperature: 0 is greedy; above, units or tokens are drawn (appendix H).
        top_p: Draw from the smallest set of tokens with at least this mass; 1 is off.
        top_k: Draw from the k most probable tokens; 0 is off.
        min_p: Draw from tokens with at least this share of the best one's probability; 0 is off.
        repetition_penalty: Makes tokens that the answer holds already less likely, by the rule of
            transformers; 1 is off. Tokens of the prompt are not counted, so answers may quote it.
        seed: Makes drawing repeatable. None draws a fresh one. What is computed together depends
            on measured time, and rounding on that: a decision that hangs on the last bits may
            still flip. `lookahead=5` and `prompt_lookup=False` leave time out of it.
        reasoning: Whether the models reason in front of the answer, or in how many tokens at most;
            True is 1,024. They do not count against max_tokens. Needs a drafter whose chat
            template knows reasoning.
        on_length: What becomes of an object that max_tokens has brought to its end: `error` makes
            it the framework's parsing error, which names the values that were cut; `close` returns
            it, marked. Calls of tools that were brought to their end are never carried out.
        response_format: What the answer must look like; needs the `structured` extra.
        tools: Functions the model may call.
        tool_choice: `auto`, `none`, `required`, or the name of the tool to call. The last two are
            enforced; they need the `structured` extra.
        parallel_tool_calls: Whether one answer may hold several calls.
        template_args: Further arguments of the chat templates. Models are told not to think aloud
            unless `enable_thinking` is true.
    """

    max_tokens: Whole = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()
    temperature: Real = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: Real = Field(default=1.0, gt=0, le=1)
    top_k: Whole = Field(default=0, ge=0)
    min_p: Real = Field(default=0.0, ge=0, le=1)
    repetition_penalty: Real = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: Whole | None = Field(default=None, ge=0)
    reasoning: Annotated[Whole, Field(ge=0)] | bool = Field(
        default=False, union_mode="left_to_right"
    )
    on_length: Literal["error", "close"] = "error"
    response_format: ResponseFormat | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    template_args: dict[str, Any] = Field(default_factory=dict)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: Any) -> Any:
        return () if stop is None else (stop,) if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _stops_are_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in stop):
            raise ValueError("a stop string must not be empty")
        for text in stop:
            check_text("stop", text)
        return stop
