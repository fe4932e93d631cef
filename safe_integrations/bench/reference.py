"""What the engine is measured against: `generate` of transformers, on a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from safe_integrations.bench.measure import Alone


def transformers_generate(model: Any, tokenizer: Any) -> Alone:
    """A model of transformers that writes alone, greedily, with its own `generate`."""

    def alone(prompt: Sequence[int], count: int, tell: Callable[[], None]) -> None:
        ids = {"input_ids": [list(prompt)], "attention_mask": [[1] * len(prompt)]}
        batch = tokenizer.pad(ids, padding=False, return_tensors="pt")
        model.generate(
            **batch.to(model.device),
            streamer=_Teller(tell),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=0,
            use_cache=True,
        )

    return alone


class _Teller:
    """A streamer that tells about every token, but not about the prompt."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._reading = True

    def put(self, value: Any) -> None:
        """Called with the prompt, then with each token."""
        if not self._reading:
            self._tell()
        self._reading = False

    def end(self) -> None:
        """Called at the end of the answer."""
