"""Looking at a model without loading its weights: its tokenizer and its config tell enough."""

from __future__ import annotations

from collections.abc import Sequence

from safe_integrations.calls.agreement import Agreement, agree
from safe_integrations.errors import SafeError
from safe_integrations.models.load import backend_of
from safe_integrations.models.report import ModelReport
from safe_integrations.models.spec import ModelSpec, Progress, told_apart


def form_of_calls(reports: Sequence[ModelReport]) -> Agreement:
    """How tools would be called by these models together, and why."""
    names = told_apart(report.name for report in reports)
    usable = zip(names, reports, strict=True)
    return agree({name: report.teaches for name, report in usable if report.problem is None})


def inspect_model(spec: ModelSpec, tell: Progress) -> ModelReport:
    """Looks at one model: where it is, whether it can be used, how much memory it will need.

    A GGUF file that transformers computes is converted, as loading it would do: its tokenizer
    cannot be read quickly.
    """
    try:
        return backend_of(spec).report_of(spec, tell)
    except SafeError as error:
        return ModelReport(spec.source, problem=str(error))
