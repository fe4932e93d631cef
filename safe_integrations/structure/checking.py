"""Finished answers, checked against what a grammar cannot enforce of a schema."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from math import inf
from typing import Any

from safe_integrations.errors import MissingDependencyError


def complaint(schema: dict[str, Any], value: Any) -> str | None:
    """Which part of a schema a value breaks, as a sentence; None where it breaks none.

    Args:
        schema: A JSON schema.
        value: JSON data.
    """
    from jsonschema.exceptions import best_match

    try:
        error = best_match(_validator(schema).iter_errors(value))
    except Exception as problem:  # of a reference or a pattern: what is not checked is not valid
        return f"it cannot be checked: {type(problem).__name__}: {_short(str(problem))}"
    if error is None:
        return None
    rule = "/".join(["#", *map(str, error.absolute_schema_path)])
    where = "".join(f"/{key}" for key in error.absolute_path) or "it"
    return f"{where} breaks the schema at {rule}: {_short(error.message)}"


def schema_complaint(schema: dict[str, Any]) -> str | None:
    """Why nothing can be checked against a schema; None where it can.

    Raises:
        MissingDependencyError: `jsonschema` is not installed.
    """
    validator = _validator(schema)
    from jsonschema.exceptions import SchemaError

    try:
        validator.check_schema(schema, format_checker=validator.FORMAT_CHECKER)
    except SchemaError as error:
        return _short(error.message)
    return None


def _validator(schema: dict[str, Any]) -> Any:
    """A validator by the draft that the schema names; it fetches nothing."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import validator_for
        from referencing import Registry
    except ImportError:
        feature = "a schema that can only be checked"
        raise MissingDependencyError(feature, "jsonschema", "structured") from None
    kind = _exact(validator_for(schema, default=Draft202012Validator))
    return kind(schema, format_checker=kind.FORMAT_CHECKER, registry=Registry())


@cache
def _exact(kind: Any) -> Any:
    """A validator that divides as decimals do: by floats, 12.12 is no multiple of 0.01."""
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def multiple_of(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(value, "number"):
            if (
                value in (inf, -inf)
                or (Fraction(str(value)) / Fraction(str(step))).denominator != 1
            ):
                yield ValidationError(f"{value!r} is not a multiple of {step}")

    return extend(kind, {"multipleOf": multiple_of}, format_checker=kind.FORMAT_CHECKER)


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."
