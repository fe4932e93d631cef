"""`safe-integrations compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safe_integrations.cli import options as o
from safe_integrations.cli.config_options import config_options
from safe_integrations.cli.render import out, print_json, progress
from safe_integrations.cli.tables import table
from safe_integrations.config import EnsembleConfig, GenerationConfig, Mode
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.report.terminal import err, key, painted, styled
from safe_integrations.report.verdicts import short

if TYPE_CHECKING:
    from safe_integrations.messages import Message
    from safe_integrations.report.result import Result
    from safe_integrations.safe_engine import SafeEngine

_RUNS: Final[dict[Mode, str]] = {
    "drafter-only": "drafter alone",
    "every-token": "every token ensembled",
    "safe": "SAFE",
}
_SIDE_BY_SIDE: Final = 100
"""Columns from which three panels are readable beside each other."""

_WARM = "every model had read the prompt before; seconds are those of writing the answer"


@config_options(
    {"config": EnsembleConfig, "options": GenerationConfig}, without=(*o.WITHOUT, "mode")
)
def compare(
    prompt: o.Prompt,
    *,
    config: EnsembleConfig,
    options: GenerationConfig,
    system: o.System = None,
    json_schema: o.SchemaFile = None,
    strict: o.Strict = None,
    regex: o.Pattern = None,
    drafter: o.Drafter = None,
    verifier: o.Verifiers = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write one answer three ways, by the same models: drafter alone, every token, SAFE."""
    messages = o.messages_of(prompt, system)
    options = o.with_format(options, json_schema, regex, strict)
    engine = o.open_engine(o.specs_of(drafter, verifier, dtype, device), config, quiet)
    if not engine.verifiers:
        raise InvalidArgumentError("--verifier", None, "name at least one model to compare with")
    results = _run(engine, messages, options, quiet)
    if as_json:
        print_json(_payload(results))
        return
    console = out()
    console.print(_panels(results, console.width, styled(console)), soft_wrap=False)
    console.print(_costs(results), soft_wrap=False)
    if not quiet:
        console = err()
        if styled(out()):
            console.print(key())
        console.print(f"Same loaded models; {_WARM}.", style="dim")


def _run(
    engine: SafeEngine, messages: Sequence[Message], options: GenerationConfig, quiet: bool
) -> dict[Mode, Result]:
    from safe_integrations.safe_engine import SafeEngine

    results: dict[Mode, Result] = {}
    with progress(quiet) as tell:
        tell("reading the prompt")
        first_token = options.model_copy(update={"max_tokens": 1})
        every_token = engine.config.model_copy(update={"mode": "every-token"})
        # one token of this asks every model, so that later runs find the prompt read
        SafeEngine(engine.drafter, engine.verifiers, every_token).complete(messages, first_token)
        for mode, title in _RUNS.items():
            tell(title)
            config = engine.config.model_copy(update={"mode": mode})
            same_models = SafeEngine(engine.drafter, engine.verifiers, config)
            results[mode] = same_models.complete(messages, options)
    return results


def _payload(results: dict[Mode, Result]) -> dict[str, Any]:
    slowdown = _slowdown(results)
    runs = {
        mode: {"title": _RUNS[mode], "slowdown": slowdown[mode], **result.to_dict()}
        for mode, result in results.items()
    }
    return {"note": _WARM, "runs": runs}


def _per_token(result: Result) -> float:
    return result.statistics.seconds / max(1, result.statistics.tokens)


def _slowdown(results: dict[Mode, Result]) -> dict[Mode, float | None]:
    """Seconds per token, as multiples of the drafter's."""
    alone = _per_token(results["drafter-only"])
    return {m: round(_per_token(r) / alone, 3) if alone else None for m, r in results.items()}


def _panels(results: dict[Mode, Result], width: int, colours: bool) -> RenderableType:
    panels = [
        Panel(painted(r) if colours else Text(r.text), title=_RUNS[mode], title_align="left")
        for mode, r in results.items()
    ]
    if width < _SIDE_BY_SIDE:
        return Group(*panels)
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    return grid


def _costs(results: dict[Mode, Result]) -> Table:
    made = table(None, "", *(_RUNS[mode] for mode in results))
    stats = [result.statistics for result in results.values()]
    slowdown = _slowdown(results).values()

    def row(name: str, *values: object) -> None:
        made.add_row(name, *map(str, values))

    row("tokens", *(s.tokens for s in stats))
    row("seconds", *(f"{s.seconds:.2f}" for s in stats))
    row("ms per token", *(f"{1000 * _per_token(r):.1f}" for r in results.values()))
    row("against the drafter alone", *(f"{x:.2f} x" if x else "-" for x in slowdown))
    row("ensembled", *(f"{s.ensembled} ({s.ensembled_ratio:.0%})" for s in stats))
    row("changed", *(s.changed for s in stats))
    for nth, model in enumerate(stats[-1].models):
        cells = [s.models[nth] if nth < len(s.models) else None for s in stats]
        made.add_row(Text(short(model.name), "dim"))
        row("  forward passes", *(c.forward_passes if c else 0 for c in cells))
        row("  tokens forwarded", *(c.forwarded_tokens if c else 0 for c in cells))
        row("  seconds", *(f"{c.seconds if c else 0:.2f}" for c in cells))
    row("outside the models", *(f"{s.overhead_seconds:.2f}" for s in stats))
    return made
