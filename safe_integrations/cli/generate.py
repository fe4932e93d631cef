"""`safe-integrations generate`."""

from __future__ import annotations

from pathlib import Path

from safe_integrations.cli import options as o
from safe_integrations.cli.config_options import config_options
from safe_integrations.cli.render import print_json, stream
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message
from safe_integrations.report.terminal import err, legend, model_table
from safe_integrations.report.verdicts import facts


@config_options({"config": EnsembleConfig, "options": GenerationConfig}, without=o.WITHOUT)
def generate(
    prompt: o.MaybePrompt = None,
    *,
    config: EnsembleConfig,
    options: GenerationConfig,
    file: o.Questions = None,
    output: o.Output = None,
    jobs: o.Jobs = None,
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

    With --file: write an answer to each of its questions, a JSON object per line, as they are
    completed. Exits with 1 where some failed.
    """
    from safe_integrations.report.result import Result

    asked = _asked(prompt, system, file, output, jobs)
    options = o.with_format(options, json_schema, regex, strict)
    specs = o.specs_of(drafter, verifier, dtype, device)
    if isinstance(asked, Path):
        from safe_integrations.cli.many import Asking, answer_all

        asking = Asking(options, system, whole=as_json)
        answer_all(asked, output, jobs, lambda: o.open_engine(specs, config, quiet), asking, quiet)
        return
    engine = o.open_engine(specs, config, quiet)
    events = engine.generate(asked, options)
    if as_json:
        result = Result.of(events)
        print_json(result.to_dict())
        o.check(result, options)
        return
    result = Result.of(stream(events, quiet))
    if not quiet:
        console = err()
        console.print()
        console.print(legend(result.statistics, console))
        console.print(facts(result.statistics, result.finish_reason), style="dim")
        console.print()
        console.print(model_table(result.statistics))
    o.check(result, options)


def _asked(
    prompt: str | None,
    system: str | None,
    file: Path | None,
    output: Path | None,
    jobs: int | None,
) -> list[Message] | Path:
    """The conversation that a command line asks for, or the file of its questions."""
    if file is not None:
        if prompt is not None:
            raise InvalidArgumentError("--file", str(file), "give a prompt or --file, not both")
        return file
    for name, given in {"--output": output, "--jobs": jobs}.items():
        if given is not None:
            raise InvalidArgumentError(name, str(given), "it needs --file")
    if prompt is None:
        raise InvalidArgumentError("prompt", None, "write something to answer, or give --file")
    return o.messages_of(prompt, system)
