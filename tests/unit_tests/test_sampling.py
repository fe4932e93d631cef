"""Sampling: what is drawn follows the distribution that docs/how-it-works.md promises."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.ensemble import as_single_tokens, merge
from safe_integrations.engine.sampling import draw, shape, speculative_draw
from safe_integrations.engine.tokens import END
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import Script, ScriptedMember

DRAWS = 40_000
ANSWERS = 4_000
TOKENS = 2
SYMBOLS = [b"a", b"b", b"c", b"d", END]
# chi-square quantile at 1 - 1e-6 by Wilson-Hilferty; a right sampler fails once in a million seeds
Z = 4.7534


def moody(seed: int) -> Script:
    """A fixed, uneven distribution after every text, different for every seed."""

    def script(text: bytes) -> Mapping[bytes, float]:
        rng = np.random.default_rng(zlib.crc32(text, seed))
        weights = rng.dirichlet([0.8] * len(SYMBOLS))
        return dict(zip(SYMBOLS, weights.tolist(), strict=True))

    return script


def shaped(script: Script, text: bytes, options: GenerationConfig) -> dict[bytes, float]:
    """The textbook: temperature, then top_p over the sorted tokens, written naively."""
    expected = script(text)
    tempered = {s: p ** (1 / options.temperature) for s, p in expected.items()}
    total = sum(tempered.values())
    kept: dict[bytes, float] = {}
    for symbol in sorted(tempered, key=lambda s: -tempered[s]):
        if sum(kept.values()) < options.top_p:
            kept[symbol] = tempered[symbol] / total
    return {s: p / sum(kept.values()) for s, p in kept.items()}


def texts(
    scripts: list[tuple[float, Script]], options: GenerationConfig, text: bytes = b""
) -> dict[bytes, float]:
    """Probability of every text of up to TOKENS tokens, drawn from the mixture at each of them."""
    mixture: Counter[bytes] = Counter()
    for weight, script in scripts:
        for symbol, p in shaped(script, text, options).items():
            mixture[symbol] += weight * p  # type: ignore[assignment]
    out: Counter[bytes] = Counter()
    for symbol, p in mixture.items():
        if symbol == END:
            out[text] += p  # type: ignore[assignment]
        elif len(text) + 1 == TOKENS:
            out[text + symbol] += p  # type: ignore[assignment]
        else:
            for longer, q in texts(scripts, options, text + symbol).items():
                out[longer] += p * q  # type: ignore[assignment]
    return dict(out)


def chi_square_excess(expected: dict[bytes, float], seen: Counter[bytes]) -> float:
    """Chi-square over its 1 - 1e-6 quantile: above 1 the draws do not follow `expected`."""
    draws = sum(seen.values())
    assert set(seen) <= {text for text, p in expected.items() if p > 0}
    common = {text: p for text, p in expected.items() if p * draws >= 5}
    rest = 1 - sum(common.values())
    cells = [(p * draws, seen[text]) for text, p in common.items()]
    if rest * draws >= 5:
        cells.append((rest * draws, draws - sum(seen[text] for text in common)))
    statistic = sum((n - want) ** 2 / want for want, n in cells)
    k = len(cells) - 1
    return float(statistic / (k * (1 - 2 / (9 * k) + Z * (2 / (9 * k)) ** 0.5) ** 3))


def member(name: str, script: Script, order: int = 1) -> ScriptedMember:
    return ScriptedMember(name, SYMBOLS[:-1][::order], script, complete=False)


def promised(scripts: list[Script], weights: Sequence[float], k: int) -> dict[bytes, float]:
    """What one place follows, written naively: inside the union of the models' k best the mixture
    of their shares, with as much mass as the drafter has there; outside, the drafter's own."""
    rows = [script(b"") for script in scripts]
    union = {s for row in rows for s in sorted(row, key=lambda s: -row[s])[:k]}
    shares = [{s: row[s] / sum(row[s] for s in union) for s in union} for row in rows]
    mass = sum(rows[0][s] for s in union)
    inside = {s: mass * sum(w * r[s] for w, r in zip(weights, shares, strict=True)) for s in union}
    return dict(rows[0]) | inside


@pytest.mark.parametrize(
    ("seeds", "config"),
    [
        ((1, 1), EnsembleConfig(union_top_k=2)),
        ((1, 2), EnsembleConfig(union_top_k=2, weights=(0.3, 0.7))),
        ((1, 2), EnsembleConfig(union_top_k=5, weights=(0.3, 0.7))),
        ((1, 2), EnsembleConfig(unit="token", method="gac", union_top_k=5, weights=(0.3, 0.7))),
    ],
    ids=["itself", "part", "whole", "gac"],
)
def test_accepted_and_redrawn_tokens_together_follow_the_ensemble(
    seeds: tuple[int, int], config: EnsembleConfig
) -> None:
    """Accepting every draft, or drawing rejected tokens from the ensemble itself, fails here.

    The second member lists the same tokens in another order, so nothing is shared by ids.
    """
    weights, scripts = config.weights_for(2), [moody(seed) for seed in seeds]
    members = [member("a", scripts[0]), member("b", scripts[1], order=-1)]
    tables, rows = [m.tokens for m in members], [m.start([]).score([], 0)[0] for m in members]
    merged = merge(tables, rows, weights, config.model_copy(update={"sharpening": "none"}))
    random, drafter = np.random.default_rng(20), np.exp(rows[0].dense(), dtype=np.float64)
    drafted = [tables[0].symbol(draw(drafter, random)) for _ in range(DRAWS)]
    single = merged.by_model[0]
    if config.method == "unite":
        single = as_single_tokens(merged.symbols, tables[0], rows[0])
    seen = Counter(speculative_draw(merged, single, weights, symbol, random) for symbol in drafted)
    assert chi_square_excess(promised(scripts, weights, config.union_top_k), seen) < 1
    if seeds[0] != seeds[1]:
        assert chi_square_excess(dict(scripts[0](b"")), seen) > 1  # the check can tell


def test_answers_follow_the_mixture_of_shaped_models() -> None:
    """Drafting and accepting by one random number, or shaping one model only, fails here."""
    options = GenerationConfig(temperature=1.5, top_p=0.9, max_tokens=TOKENS)
    engine = SafeEngine(
        member("a", moody(1)),
        [member("b", moody(2), order=-1)],
        EnsembleConfig(weights=(0.3, 0.7), lookahead=3),
    )
    seen: Counter[bytes] = Counter()
    for seed in range(ANSWERS):
        seen[engine.complete("x", options.model_copy(update={"seed": seed})).text.encode()] += 1
    assert chi_square_excess(texts([(0.3, moody(1)), (0.7, moody(2))], options), seen) < 1


def test_a_seed_repeats_a_text_and_other_seeds_differ() -> None:
    engine = SafeEngine(member("a", moody(3)), [member("b", moody(4), order=-1)])

    def text(seed: int | None) -> str:
        options = GenerationConfig(temperature=1.5, seed=seed, max_tokens=40)
        return engine.complete("x", options).text

    first = [text(seed) for seed in range(20)]
    assert len(set(first)) > 10
    assert [text(seed) for seed in reversed(range(20))] == first[::-1]
    # no text is drawn more often than every other time: once in 2**99 runs all are the same
    assert len({text(None) for _ in range(100)}) > 1


PROBS = {b"a": 0.5, b"b": 0.25, b"c": 0.15, b"d": 0.1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(temperature=1), [0.5, 0.25, 0.15, 0.1]),
        (dict(temperature=0.5), [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        (dict(temperature=1, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (dict(temperature=1, top_p=0.75), [2 / 3, 1 / 3, 0, 0]),
        (dict(temperature=1, top_p=0.76), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        (dict(temperature=1, top_p=0.01), [1, 0, 0, 0]),
        (dict(temperature=1, min_p=0.29), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        (dict(temperature=1, top_k=3, min_p=0.4), [2 / 3, 1 / 3, 0, 0]),
        (dict(repetition_penalty=2.0), [0.25 / 0.75, 0.25 / 0.75, 0.15 / 0.75, 0.1 / 0.75]),
        (dict(top_k=1, top_p=0.1), [0.5, 0.25, 0.15, 0.1]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_shaping_follows_the_textbook(options: dict[str, float], expected: list[float]) -> None:
    """The expected numbers are computed by hand from 0.5, 0.25, 0.15, 0.1; history is `a`."""
    distribution = DenseDistribution(np.log(np.array(list(PROBS.values()), np.float32)))
    out = shape(distribution, [0], None, GenerationConfig(**options))
    np.testing.assert_allclose(np.exp(out.dense()), expected, atol=1e-6)


class Raw(DenseDistribution):
    """A distribution whose logits are not log-probabilities."""

    def logits(self) -> np.ndarray:
        return np.array([2, 1, 0, -1], np.float32)


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    """The rule of transformers' RepetitionPenaltyLogitsProcessor, by hand: 2, 1, 0, -1."""
    distribution = Raw(np.log(np.full(4, 0.25, np.float32)))
    out = shape(distribution, [0, 0, 3], None, GenerationConfig(repetition_penalty=4.0))
    expected = np.exp([0.5, 1, 0, -4])
    np.testing.assert_allclose(np.exp(out.dense()), expected / expected.sum(), atol=1e-6)


def test_what_the_constraint_forbids_has_no_probability() -> None:
    distribution = DenseDistribution(np.log(np.array(list(PROBS.values()), np.float32)))
    out = shape(distribution, [], np.array([False, True, False, True]), GenerationConfig())
    np.testing.assert_allclose(np.exp(out.dense()), [0, 0.25 / 0.35, 0, 0.1 / 0.35], atol=1e-6)
