"""Options of commands made from the fields of a config model, so that a knob has one home."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from safe_integrations.config import StrictModel
from safe_integrations.errors import InvalidArgumentError

Command = Callable[..., None]


def knobs(
    models: Mapping[str, type[StrictModel]], *, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Replaces parameters that are config models by one option for each of their fields.

    Args:
        models: Name of a parameter -> the model to build for it.
        without: Fields that get no option and keep their default.

    Returns:
        A decorator for a Typer command.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in models]
        owner = {
            name: parameter
            for parameter, model in models.items()
            for name in model.model_fields
            if name not in without
        }

        @wraps(command)
        def run(**values: Any) -> None:
            given: dict[str, dict[str, Any]] = {parameter: {} for parameter in models}
            for name, parameter in owner.items():
                field = models[parameter].model_fields[name]
                given[parameter][name] = _read(name, field, values.pop(name))
            built = {parameter: models[parameter](**given[parameter]) for parameter in models}
            command(**values, **built)

        options = [_option(name, models[parameter]) for name, parameter in owner.items()]
        run.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


def field_help(model: type[StrictModel]) -> dict[str, str]:
    """What a model's docstring says about each of its fields."""
    _, _, section = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()) for name, text in entries}


def _option(name: str, model: type[StrictModel]) -> inspect.Parameter:
    field = model.model_fields[name]
    kind, metavar = _kind(field.annotation)
    info = typer.Option(
        f"--{name.replace('_', '-')}",
        help=field_help(model).get(name, ""),
        rich_help_panel=model.__name__.removesuffix("Config"),
        min=_bound(field, Ge),
        max=_bound(field, Le),
        metavar=metavar,
        show_default=field.default not in (None, ()) and field.default_factory is None,
    )
    default = field.default
    if kind == list[str]:
        default = list(default)
    elif kind == str | None:
        default = None
    elif kind is str:
        default = str(default)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _bound(field: FieldInfo, kind: type[Ge] | type[Le]) -> float | None:
    """A field's smallest (Ge) or largest (Le) value, where it has one."""
    for constraint in field.metadata:
        if isinstance(constraint, kind):
            bound: Any = constraint.ge if isinstance(constraint, Ge) else constraint.le
            return bound  # type: ignore[no-any-return]
    return None


def _kind(annotation: Any) -> tuple[Any, str | None]:
    """How a field is given on the command line: the option's type and its placeholder."""
    inner, optional = annotation, False
    if NoneType in get_args(annotation):
        (inner,) = (arg for arg in get_args(annotation) if arg is not NoneType)
        optional = True
    if any(get_origin(arg) is Literal for arg in get_args(inner)):
        return str, "N|" + "|".join(str(w) for a in get_args(inner) for w in get_args(a))
    if get_origin(inner) is tuple:
        if get_args(inner)[0] is str and not optional:
            return list[str], "TEXT"
        return str | None, "N,N,..."
    if get_origin(inner) is dict:
        return str | None, "JSON"
    if get_origin(inner) is Literal or inner in (int, float, str, bool):
        return annotation, None
    raise TypeError(f"no option can be made of {annotation}")


def _read(name: str, field: FieldInfo, value: Any) -> Any:
    """Turns an option's text into what the model takes."""
    kind, metavar = _kind(field.annotation)
    if kind != str | None or metavar is None:
        return value
    if value is None:
        return field.get_default(call_default_factory=True)
    if metavar == "JSON":
        return read_json(name, value)
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise InvalidArgumentError(name, value, "give numbers with commas between them") from None


def read_json(argument: str, text: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InvalidArgumentError: It is not one.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(argument, text, f"this is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArgumentError(argument, text, "give a JSON object: {...}")
    return value
