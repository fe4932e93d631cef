"""One answer of a process that has just been started: `benchmarks.starts` starts it, and listens.

Nothing is imported but what a user's program would import. It prints an empty line with its first
text, one with what is to be known of it after its answer, and waits until nobody listens any more.
"""

from __future__ import annotations

import json
import sys

from safe_integrations import GenerationConfig, load_engine
from safe_integrations.engine.events import Finished, TextDelta
from safe_integrations.models.spec import ModelSpec


def main(told: str) -> None:
    """Answers.

    Args:
        told: JSON: `specs`, the models, drafter first; `question` and `max_tokens`.
    """
    asked = json.loads(told)
    specs = [ModelSpec.model_validate(spec) for spec in asked["specs"]]
    engine = load_engine(specs[0], specs[1:])
    options = GenerationConfig(max_tokens=asked["max_tokens"])
    begun, tokens = False, 0
    for event in engine.generate(asked["question"], options):
        if isinstance(event, TextDelta | Finished) and not begun:
            print(flush=True)
            begun = True
        if isinstance(event, Finished):
            tokens = event.statistics.tokens
    caches = sum(getattr(member, "cache_bytes", 0) for member in engine.members)
    loaded = [name for name in ("torch", "transformers") if name in sys.modules]
    print(json.dumps({"tokens": tokens, "caches": caches, "loaded": loaded}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
