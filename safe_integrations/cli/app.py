"""The Typer application: commands, their common options, and how errors leave it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from safe_integrations import __version__
from safe_integrations.cli.compare import compare
from safe_integrations.cli.doctor import doctor
from safe_integrations.cli.generate import generate
from safe_integrations.cli.schema import schema
from safe_integrations.errors import InvalidArgumentError, SafeError


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turns warnings, and the package's errors, into a line on stderr; errors into an exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show
            yield
    except SafeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, InvalidArgumentError) else 1) from None
    except KeyboardInterrupt:
        typer.echo("\nstopped", err=True)
        raise typer.Exit(130) from None


def _show(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"warning: {message}", err=True)


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with readable_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="safe-integrations",
    cls=_Group,
    help="Several language models, with different tokenizers, write one answer together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(compare)
app.command()(doctor)
app.command()(schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Unicode must not stop an answer
            stream.reconfigure(errors="replace")
