"""The tiny models: how each splits text, what it never saw, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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

from benchmarks.claims.problems import (
    AROUND_1000,
    FACTS,
    TWO_DIGITS,
    Fact,
    Problem,
    Totals,
    equation,
    problems,
)
from safe_integrations.models.spec import LoadedModel

Tell = Callable[[str], None]

_TEMPLATE: Final = "{{ messages[-1]['content'] + '\n' }}"
_PROBLEMS: Final = 8000
_TEXTS: Final = 1000  # that a tokenizer learns from
_STEPS: Final = 500
_BATCH: Final = 16
_EQUATIONS: Final = 128
_WARM_UP: Final = 50
_MISSING: Final = 0.2
_IGNORED: Final = -100


@dataclass(frozen=True)
class Recipe:
    """One member.

    Attributes:
        name: One letter.
        size: Tokens of its vocabulary at most.
        numbers: How it splits numbers, a regular expression.
        space: How it splits a space from the word behind it: " ?" keeps them together.
        totals: How large the totals of its problems are.
    """

    name: str
    size: int
    numbers: str = "[0-9]"
    space: str = " ?"
    totals: Totals = TWO_DIGITS

    @property
    def pattern(self) -> str:
        """What no token reaches across."""
        return rf"{self.space}[A-Za-z]+|{self.numbers}|[^A-Za-z0-9]"


RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe("A", 340),  # words in fragments
        Recipe("B", 396, space=""),
        Recipe("C", 423),
        Recipe("D", 560, numbers="[0-9]+"),
        Recipe("G", 700, numbers="[0-9]{1,3}", totals=AROUND_1000),
        Recipe("S", 423, totals=AROUND_1000),
    )
}


def seed_of(name: str, seeds: int) -> int:
    """The seed of a member's facts, problems, weights and batches in a set of seeds."""
    return 1000 * seeds + ord(name)


def known_facts(name: str, seeds: int) -> frozenset[Fact]:
    """All facts but the fifth that a member never sees."""
    random = Random(f"facts {seed_of(name, seeds)}")
    return frozenset(FACTS) - set(random.sample(FACTS, round(_MISSING * len(FACTS))))


def member(name: str, seeds: int, folder: Path, tell: Tell) -> LoadedModel:
    """A member, out of the folder where it was trained before with this recipe."""
    recipe = RECIPES[name]
    text = repr((asdict(recipe), seeds, _PROBLEMS, _STEPS, _BATCH, _EQUATIONS, _MISSING, recipe.pattern))
    file = folder / f"{name}-{seeds}-{sha256(text.encode()).hexdigest()[:12]}.safetensors"
    random = Random(f"problems {seed_of(name, seeds)}")
    drawn = problems(random, recipe.totals, known_facts(name, seeds), held_out=False)
    seen = list(islice(drawn, _PROBLEMS))
    tokenizer = _tokenizer(recipe, seen[:_TEXTS])
    torch.manual_seed(seed_of(name, seeds))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=512,
            initializer_range=0.05,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=None,
        )
    )
    if file.exists():
        load_model(model, str(file))
    else:
        lessons = Lessons(recipe, tokenizer, seen, known_facts(name, seeds), random)
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
        model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1
    )
    schedule = LambdaLR(optimizer, _rate)
    for step in range(_STEPS):
        loss = _loss(model, *lessons.worked()) + 0.5 * _loss(model, *lessons.equations())
        optimizer.zero_grad()
        loss.backward()
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


def _tokenizer(recipe: Recipe, seen: Sequence[Problem]) -> Any:
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
