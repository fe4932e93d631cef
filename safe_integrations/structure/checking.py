"""Finished answers, checked against what a grammar cannot enforce of a schema."""

from __future__ import annotations

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
    kind = validator_for(schema, default=Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER, registry=Registry())


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."
