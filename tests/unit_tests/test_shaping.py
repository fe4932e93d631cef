"""Shaping keeps what transformers' own warpers keep, at any temperature and any limits."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.sampling import pick, shape


def warped(logits: np.ndarray, options: GenerationConfig) -> np.ndarray:
    scores = torch.from_numpy(logits)[None]
    warpers = [TemperatureLogitsWarper(options.temperature)]
    if options.top_k:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(options.top_p))
    if options.min_p > 0:
        warpers.append(MinPLogitsWarper(options.min_p))
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 2000),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    masked=st.sampled_from([0.0, 0.5, 0.99]),
    temperature=st.sampled_from([1e-8, 1e-3, 0.7, 1.0, 2.0, 100.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 5000]),
    top_p=st.sampled_from([1e-17, 1e-9, 0.1, 0.9, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 0.5, 1.0]),
)
def test_shaping_is_that_of_transformers(
    seed: int, size: int, spread: float, masked: float, **limits: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = (spread * rng.normal(size=size)).astype(np.float32)
    logits[1:][rng.random(size - 1) < masked] = -np.inf
    options = GenerationConfig(**limits)  # type: ignore[arg-type]
    shaped = shape(DenseDistribution(logits.copy(), None), [], None, options)
    probs = np.exp(np.asarray(shaped.dense(), np.float64))
    np.testing.assert_allclose(probs, warped(logits, options), atol=1e-4)
    assert probs[pick(shaped, rng)] > 0
    best = shaped.top(5)
    assert best[0] == shaped.best
    np.testing.assert_allclose(np.exp(shaped.logprobs(best)), probs[best], atol=1e-6)
