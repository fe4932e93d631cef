"""What vLLM writes is what transformers writes: the servers are fit to be compared with."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe_integrations.models.embedded import EMBEDDED
from tests.server_process import Server

TOKENS = 24
OPENINGS = (
    "The capital of France is a city that",
    "Once upon a time there was a fox who",
    "To bake a loaf of bread, one needs",
)


def post(url: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


@pytest.mark.parametrize("name", EMBEDDED)
def test_greedy_text_is_that_of_transformers(
    servers: dict[str, Server], folders: dict[str, Path], name: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    for prompt in OPENINGS:
        ids = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
        answer = post(
            f"{servers[name].url}/completions",
            {
                "model": name,
                "prompt": ids["input_ids"][0].tolist(),
                "max_tokens": TOKENS,
                "temperature": 0,
                "return_token_ids": True,
            },
        )
        (choice,) = answer["choices"]
        assert len(choice["token_ids"]) == TOKENS
        assert choice["prompt_token_ids"] + choice["token_ids"] == expected
        print(f"{name}: {prompt!r} -> {choice['text']!r}")
