"""What the engine is measured against: `generate` of transformers, on a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class TransformersGenerate:
    """A model of transformers that writes alone, greedily, with its own `generate`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def __call__(self, prompt: Sequence[int], count: int, tell: Callable[[], None]) -> None:
        """Writes exactly `count` tokens after a prompt; tells after each of them."""
        ids = {"input_ids": [list(prompt)], "attention_mask": [[1] * len(prompt)]}
        batch = self._tokenizer.pad(ids, padding=False, return_tensors="pt")
        self._model.generate(
            **batch.to(self._model.device),
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
