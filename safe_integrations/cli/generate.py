"""`safe-integrations generate`."""

from __future__ import annotations

from safe_integrations.cli import options as o
from safe_integrations.cli.config_options import config_options
from safe_integrations.cli.render import print_json, stream
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.report.terminal import err, legend, model_table
from safe_integrations.report.verdicts import facts


@config_options({"config": EnsembleConfig, "options": GenerationConfig}, without=o.WITHOUT)
def generate(
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
    """Write one answer with several models; show where they were ensembled.

    The answer goes to stdout as it is written, everything about it to stderr.
    """
    from safe_integrations.report.result import Result

    messages = o.messages_of(prompt, system)
    options = o.with_format(options, json_schema, regex, strict)
    engine = o.open_engine(o.specs_of(drafter, verifier, dtype, device), config, quiet)
    events = engine.generate(messages, options)
    if as_json:
        result = Result.of(events)
        print_json(result.to_dict())
        o.check(result, options)
        return
    result = Result.of(stream(events))
    if not quiet:
        console = err()
        console.print()
        console.print(legend(result.statistics, console))
        console.print(facts(result.statistics, result.finish_reason), style="dim")
        console.print()
        console.print(model_table(result.statistics))
    o.check(result, options)
