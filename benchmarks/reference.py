"""What the engine is measured against: transformers' own ways to write, on a model of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

import torch

from benchmarks.measure import Alone, Run, Way, Written
from safe_integrations.models.openmp import send_team_home

_GREEDY: Final = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "pad_token_id": 0,
    "use_cache": True,
}

_PAGE: Final = 32
"""Positions of a page of a cache in continuous batching: prompts and answers are short."""


def transformers_generate(model: Any, tokenizer: Any) -> Alone:
    """A model of transformers that writes alone, greedily, with its own `generate`."""

    def alone(prompt: Sequence[int], count: int, tell: Callable[[], None]) -> None:
        ids = {"input_ids": [list(prompt)], "attention_mask": [[1] * len(prompt)]}
        batch = tokenizer.pad(ids, padding=False, return_tensors="pt")
        model.generate(
            **batch.to(model.device),
            streamer=_Teller(lambda _: tell()),
            min_new_tokens=count,
            max_new_tokens=count,
            **_GREEDY,
        )

    return alone


class _Teller:
    """A streamer that tells about every step, but not about the prompt."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell
        self._reading = True

    def put(self, value: Any) -> None:
        """Called with the prompt, then with the next token of each answer."""
        if not self._reading:
            self._tell(value)
        self._reading = False

    def end(self) -> None:
        """Called at the end of the answer."""


class Batches:
    """`generate` of transformers, greedily, for batches of prompts that are padded on the left.

    Args:
        model: A model of transformers.
        ends: Ids that end an answer.
        way: How the runs are called.
    """

    def __init__(self, model: Any, ends: Sequence[int], way: Way = "generate") -> None:
        self._model = model
        self._ends = list(ends)
        self._way = way

    def __call__(self, prompts: Sequence[Sequence[int]], at_once: int, count: int) -> list[Written]:
        """Answers to all prompts, so many at once."""
        written: list[Written] = []
        for first in range(0, len(prompts), at_once):
            written += self._batch(prompts[first : first + at_once], count)
        send_team_home()
        return written

    def _batch(self, prompts: Sequence[Sequence[int]], count: int) -> list[Written]:
        steps: list[tuple[float, list[int]]] = []
        begun = perf_counter()
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        self._model.generate(
            input_ids=torch.tensor(
                [[0] * n + list(p) for n, p in zip(padding, prompts, strict=True)]
            ),
            attention_mask=torch.tensor([[0] * n + [1] * (longest - n) for n in padding]),
            streamer=_Teller(lambda ids: steps.append((perf_counter() - begun, ids.tolist()))),
            max_new_tokens=count,
            eos_token_id=self._ends,
            **_GREEDY,
        )
        ended = perf_counter()  # nobody has an answer before all have
        runs = []
        for row in range(len(prompts)):
            marks = []
            for nth, (seconds, ids) in enumerate(steps, 1):
                marks.append((nth, seconds))
                if ids[row] in self._ends:
                    break
            runs.append(Written(begun, ended, Run(self._way, tuple(marks), marks[0][1])))
        return runs


class Continuous:
    """transformers' continuous batching, greedily.

    Args:
        model: A model of transformers.
        ends: Ids that end an answer.
    """

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        self._model = model
        self._ends = list(ends)

    def __call__(self, prompts: Sequence[Sequence[int]], at_once: int, count: int) -> list[Written]:
        """Answers to all prompts, so many at once."""
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        pages = -(-(max(map(len, prompts)) + count) // _PAGE)
        config = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=(at_once + 1) * (pages + 1),
            max_batch_tokens=256,
            max_requests_per_batch=at_once,
            allow_block_sharing=False,  # every prompt is read, as it is by the others
        )
        options = GenerationConfig(
            max_new_tokens=count, eos_token_id=self._ends, do_sample=False, pad_token_id=0
        )
        waiting, begun = deque(prompts), dict[str, float]()
        written: list[Written] = []
        send_team_home()
        with self._model.continuous_batching_context_manager(
            generation_config=options, continuous_batching_config=config
        ) as manager:
            while len(written) < len(prompts):
                while waiting and len(begun) < at_once:
                    now = perf_counter()
                    begun[manager.add_request(list(waiting.popleft()), record_timestamps=True)] = (
                        now
                    )
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("continuous batching has stopped")
                elif result.error is not None:
                    raise RuntimeError(result.error)
                elif result.is_finished():
                    since = begun.pop(result.request_id)
                    times = enumerate((time - since for time in result.timestamps), 1)
                    run = Run("continuous", tuple(times), result.timestamps[0] - since)
                    written.append(Written(since, perf_counter(), run))
        return written
