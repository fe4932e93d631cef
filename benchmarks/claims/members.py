"""The tiny models themselves: tokenizers, weights, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from safetensors.torch import load_model, save_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.claims.problems import Fact, Problem, equation, problems
from benchmarks.claims.recipes import RECIPES, Recipe, known_facts, seed_of
from safe_integrations.models.spec import LoadedModel

Tell = Callable[[str], None]

_SHAPE: Final = {
    "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.05, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
_TEMPLATE: Final = "{{ messages[-1]['content'] + '\n' }}"
_PROBLEMS: Final = 8000
_TEXTS: Final = 1000  # that a tokenizer learns from
_STEPS: Final = 500
_BATCH: Final = 16
_EQUATIONS: Final = 128
_WARM_UP: Final = 50
_LEARNING_RATE: Final = 3e-3
_IGNORED: Final = -100


def member(name: str, seeds: int, folder: Path, tell: Tell) -> LoadedModel:
    """A member, out of the folder where it was trained before with this recipe."""
    recipe, known = RECIPES[name], known_facts(name, seeds)
    random = Random(f"problems {seed_of(name, seeds)}")
    seen = list(islice(problems(random, recipe.totals, known, held_out=False), _PROBLEMS))
    tokenizer = tokenizer_of(recipe, seen[:_TEXTS])
    torch.manual_seed(seed_of(name, seeds))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **_SHAPE))
    made_of = (
        *(tokenizer.backend_tokenizer.to_str(), model.config.to_json_string()),
        *(_STEPS, _BATCH, _EQUATIONS, _WARM_UP, _LEARNING_RATE),
        *((problem.question, problem.answer) for problem in seen),
    )
    key = sha256(repr(made_of).encode()).hexdigest()[:12]
    file = folder / f"{name}-{seeds}-{key}.safetensors"
    if file.exists():
        load_model(model, str(file))
    else:
        lessons = Lessons(recipe, tokenizer, seen, known, random)
        train(model, lessons, lambda line: tell(f"{name}: {line}"))
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_model(model, str(part))
        part.replace(file)
    return LoadedModel(model.eval(), tokenizer, name)


class Lessons:
    """What a member is trained on: problems of its own, and single equations."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Any,
        seen: Sequence[Problem],
        known: frozenset[Fact],
        random: Random,
    ) -> None:
        self._totals = recipe.totals
        self._tokenizer = tokenizer
        self._known = known
        self._random = random
        self._problems = [(self._ids(p.question + "\n"), [*self._ids(p.answer), 0]) for p in seen]
        self._order: list[int] = []

    def worked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of one batch of problems, and what is to be learned of them; (16, length) each."""
        if len(self._order) < _BATCH:
            self._order = self._random.sample(range(len(self._problems)), len(self._problems))
        batch = [self._problems[self._order.pop()] for _ in range(_BATCH)]
        return _padded(batch)

    def equations(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for single equations; (128, length) each."""
        drawn = (equation(self._random, self._totals, self._known) for _ in range(_EQUATIONS))
        return _padded([(self._ids(asked), self._ids(answer)) for asked, answer in drawn])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def train(model: Any, lessons: Lessons, tell: Tell) -> None:
    """Trains a model from its first weights on; about two minutes on one core."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1
    )
    schedule = LambdaLR(optimizer, _rate)
    for step in range(_STEPS):
        loss = _loss(model, *lessons.worked()) + 0.5 * _loss(model, *lessons.equations())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            tell(f"{step + 1} steps of {_STEPS}, loss {loss.item():.3f}")


def _rate(step: int) -> float:
    """Up over the first 50 steps, down to 2 % over the last 40 %."""
    left = (_STEPS - step) / (0.4 * _STEPS)
    return min((step + 1) / _WARM_UP, 1.0, 0.02 + 0.98 * left)


def _loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    wanted = labels[:, 1:].reshape(-1)
    return cross_entropy(logits[:, :-1].reshape(len(wanted), -1), wanted, ignore_index=_IGNORED)


def _padded(batch: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one length; what is asked and what pads a row is not to be learned."""
    length = max(len(asked) + len(answer) for asked, answer in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full_like(ids, _IGNORED)
    for row, (asked, answer) in enumerate(batch):
        end = len(asked) + len(answer)
        ids[row, :end] = torch.tensor(asked + answer)
        labels[row, len(asked) : end] = torch.tensor(answer)
    return ids, labels


def tokenizer_of(recipe: Recipe, seen: Sequence[Problem]) -> Any:
    """A byte-level BPE tokenizer that has learned from problems."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(recipe.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([f"{p.question}\n{p.answer}" for p in seen], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
