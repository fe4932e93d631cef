"""Options of commands made from the fields of config models, so that each has one home.

Typer gets a name, a placeholder and the help; what is given goes to pydantic as text, and is read
and checked there as it is for everybody else.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from safe_integrations.config import StrictModel
from safe_integrations.errors import InvalidArgumentError

Command = Callable[..., None]

_BOUNDS: Final = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def config_options(
    models: Mapping[str, type[StrictModel]], *, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Decorates a Typer command: each parameter in `models` becomes one option per field.

    Fields in `without` get no option and keep their default.
    """
    fields = {
        name: (parameter, model)
        for parameter, model in models.items()
        for name in model.model_fields
        if name not in without
    }

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**values: Any) -> None:
            given: dict[str, dict[str, Any]] = {parameter: {} for parameter in models}
            for name, (parameter, model) in fields.items():
                value = values.pop(name)
                if value is not None:
                    given[parameter][name] = _read(name, model.model_fields[name], value)
            try:
                built = {
                    parameter: model(**given[parameter]) for parameter, model in models.items()
                }
            except InvalidArgumentError as e:
                raise InvalidArgumentError(_flag(e.argument), e.given, e.remedy) from None
            command(**values, **built)

        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in models]
        options = [_option(name, model) for name, (_, model) in fields.items()]
        run.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


def field_help(model: type[StrictModel]) -> dict[str, str]:
    """What a model's docstring says about each of its fields."""
    _, _, section = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()) for name, text in entries}


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


def _option(name: str, model: type[StrictModel]) -> inspect.Parameter:
    field = model.model_fields[name]
    kind: Any = str | None
    default: Any = None if field.default is None else str(field.default)
    if field.default_factory is not None:
        default = None
    elif field.annotation is bool:
        kind, default = bool, field.default
    elif field.annotation == tuple[str, ...]:
        kind, default = list[str], list(field.default)
    info = typer.Option(
        help=field_help(model).get(name, ""),
        rich_help_panel=model.__name__.removesuffix("Config"),
        metavar=None if kind is bool else _placeholder(field),
        show_default=default not in (None, []),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _placeholder(field: FieldInfo) -> str:
    """How a field is given on the command line: its type and its bounds."""
    known = [(sign, getattr(m, name, None)) for m in field.metadata for name, sign in _BOUNDS]
    bounds = [f"{sign}{bound}" for sign, bound in known if bound is not None]
    return " ".join([_kind(field.annotation), *bounds])


def _kind(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation == tuple[str, ...]:
        return "TEXT"
    if origin is tuple:
        return "N,N,..."
    if origin is dict:
        return "JSON"
    if origin is Literal:
        return "|".join(args)
    if origin is Annotated:
        return _kind(args[0])
    if args:
        return "|".join(_kind(arg) for arg in args if arg is not NoneType)
    return "N" if annotation in (int, float) else "TEXT"


def _read(name: str, field: FieldInfo, value: Any) -> Any:
    """What the model takes for what was given: text of several parts is taken apart."""
    if get_origin(field.annotation) is dict:
        return read_json(_flag(name), value)
    return value.split(",") if _kind(field.annotation) == "N,N,..." else value
