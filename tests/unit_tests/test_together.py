"""Rows of several sessions in one forward pass: what each of them gets is what it gets alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from toy_models import SHAPE, toy_model

from safe_integrations.models.load import load_member
from safe_integrations.models.spec import LoadedModel
from safe_integrations.models.transformers import together
from safe_integrations.models.transformers.kv_cache import CroppableCache, layer_windows
from safe_integrations.models.transformers.member import TransformersMember
from safe_integrations.models.transformers.together import CannotShare, Rows
from tests.desk import PATIENCE, Desk, until

SIZE = 400
SWITCH = 48
ONE = threading.Lock()  # some models keep what they rotated last
COMMON = SHAPE | {
    "vocab_size": SIZE, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "initializer_range": 0.5, "max_position_embeddings": 512,
}  # fmt: skip
SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "one head of keys": ("llama", {"num_key_value_heads": 1}),
    "groups": ("llama", {}),
    "a head of keys each": ("llama", {"num_key_value_heads": 4}),
    "Qwen 2": ("qwen2", {}),
    "Qwen 3": ("qwen3", {}),
    "Mistral": ("mistral", {"sliding_window": 16}),
    "Gemma 3": ("gemma3_text", {"sliding_window": 16, "sliding_window_pattern": 2}),
}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
    "long_factor": [3.0, 5.0, 7.0, 9.0], "original_max_position_embeddings": SWITCH,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Gemma 2": ("gemma2", {"sliding_window": 16, "attn_logit_softcapping": 5.0}, "softcap"),
    "GPT-OSS": (
        "gpt_oss",
        {"sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
        "s_aux",
    ),
    "LongRoPE": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": SWITCH, "hidden_size": 32},
        "longest text",
    ),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC}, "longest text"),
    "no interface": ("bloom", {"n_layer": 2, "n_head": 4}, "cannot be replaced"),
}


def config_of(kind: str) -> Any:
    name, options = SHARING[kind] if kind in SHARING else REFUSED[kind][:2]
    return transformers.AutoConfig.for_model(name, **(COMMON | options))


def built(kind: str) -> Any:
    torch.manual_seed(2)
    return transformers.AutoModelForCausalLM.from_config(config_of(kind)).eval()


def caches(model: Any, count: int) -> list[CroppableCache]:
    windows = layer_windows(model.config, "toy")
    return [CroppableCache(windows) for _ in range(count)]


def settings(model: Any) -> list[str]:
    """By what every part of a model attends."""
    return [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]


def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        rows: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return rows


# One pass


@pytest.mark.parametrize("kind", SHARING)
def test_random_walks_of_several_sessions(kind: str) -> None:
    """Prompts, single tokens and drafts beside each other, with cuts between; against a fresh read.

    A session that sees another one's keys, or a wrong part of its own, has other logits.
    """
    model, rng = built(kind), random.Random(4)
    kvs: list[CroppableCache] = caches(model, 5)
    texts: list[list[int]] = [[] for _ in kvs]
    own = settings(model)
    largest = 0.0
    for step in range(25):
        rows, expected = [], []
        for nth in rng.sample(range(5), k=rng.randint(2, 5)):
            text, kv = texts[nth], kvs[nth]
            del text[rng.randint(max(0, len(text) - 9), len(text)) :]
            kv.cut(len(text))
            new = rng.choices(range(1, SIZE), k=rng.choice([1, 1, 3, 6, 30]))
            text += new
            rows.append(Rows(new, kv, rng.randint(1, len(new))))
            expected.append(logits(model, text)[-rows[-1].wanted :])
        with torch.inference_mode():
            got = together.forward(model, rows)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3, msg=f"step {step}")
            largest = max(largest, float(theirs.abs().max()))
        assert settings(model) == own
    assert max(map(len, texts)) > 48 and largest > 1
    assert [kv.get_seq_length() for kv in kvs] == [len(text) for text in texts]


@pytest.mark.parametrize("kind", SHARING)
def test_what_can_be_shared_is(kind: str) -> None:
    model = built(kind)
    assert together.probe(model, layer_windows(model.config, kind)) is None


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_shared_is_refused_with_the_reason(kind: str) -> None:
    model, why = built(kind), REFUSED[kind][2]
    own = settings(model)
    refused = together.probe(model, layer_windows(model.config, kind))
    assert refused is not None and why in refused
    assert settings(model) == own


@pytest.mark.parametrize("kind", [*SHARING, "Gemma 2", "LongRoPE", "dynamic", "no interface"])
def test_models_without_weights_tell_as_much(kind: str) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_of(kind)).eval()
    refused = together.probe(model, layer_windows(model.config, kind))
    if kind in SHARING:
        assert refused is None
    else:
        assert refused is not None and REFUSED[kind][2] in refused


def test_another_window_than_the_caches_have_is_refused() -> None:
    model = built("Mistral")
    refused = together.probe(model, [8] * 4)
    assert refused is not None and "windows" in refused


def test_numbers_that_differ_are_refused() -> None:
    """What attention does behind our back shows: here a layer that adds what a whole row is."""
    model = built("groups")
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden) * hidden.shape[1]
    refused = together.probe(model, [None] * 4)
    assert refused is not None and "numbers differ" in refused


def test_layers_that_attend_by_themselves_are_refused() -> None:
    model = built("groups")
    layer = model.model.layers[1].self_attn
    layer.forward = lambda hidden_states, **_: (hidden_states, None)
    refused = together.probe(model, [None] * 4)
    assert refused is not None and "3 of its layers" in refused


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_its_owners_again(implementation: str, failing: bool) -> None:
    """Also after an error half-way."""
    model = built("Gemma 3")
    model.set_attn_implementation(implementation)
    own, before = settings(model), logits(model, range(20, 60))
    assert set(own) == {implementation}
    rows = [Rows(range(5, 5 + n), kv, 1) for n, kv in enumerate(caches(model, 3), start=1)]
    layer = model.model.layers[2].mlp
    forward = layer.forward

    def fail(*_: Any) -> None:
        assert set(settings(model)) == {"safe_together"}
        raise MemoryError

    if failing:
        layer.forward = fail
        with pytest.raises(MemoryError), torch.inference_mode():
            together.forward(model, rows)
        layer.forward = forward
    else:
        with torch.inference_mode():
            together.forward(model, rows)
    assert settings(model) == own
    assert torch.equal(logits(model, range(20, 60)), before)
    written = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=30, do_sample=False)
    fresh = built("Gemma 3")
    fresh.set_attn_implementation(implementation)
    again = fresh.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=30, do_sample=False)
    assert torch.equal(written, again)


@pytest.mark.parametrize(
    ("kind", "implementation"), [("Gemma 3", "sdpa"), ("Gemma 3", "eager"), ("Gemma 2", "eager")]
)
def test_its_owner_may_call_it_meanwhile(kind: str, implementation: str) -> None:
    """In another thread, at any time: at every layer the one or the other may be on its way."""
    model = built(kind)
    model.set_attn_implementation(implementation)
    expected = logits(model, range(20, 60))
    over, errors = threading.Event(), list[BaseException]()

    def share() -> None:
        while not over.is_set():
            together.probe(model, layer_windows(model.config, kind))

    sharing = threading.Thread(target=share)
    sharing.start()
    try:
        for _ in range(60):
            if not torch.equal(logits(model, range(20, 60)), expected):
                errors.append(AssertionError("other numbers"))
    except BaseException as error:
        errors.append(error)
    over.set()
    sharing.join(PATIENCE)
    assert errors == []
    assert set(settings(model)) == {implementation}


def test_an_interrupt_where_the_model_is_given_back_does_not_keep_it() -> None:
    """Ctrl-C may come there, too: the next pass gives it back."""
    model = built("Gemma 3")
    expected = logits(model, range(20, 60))
    with together._attending(model):
        pass
    model.config._attn_implementation_internal = "safe_together"
    assert torch.equal(logits(model, range(20, 60)), expected)
    together.probe(model, layer_windows(model.config, "toy"))
    assert set(settings(model)) == {"sdpa"}


# Sessions


def member_of(model: Any, desk: Desk) -> TransformersMember:
    """A member whose passes are those of the desk."""
    toy = toy_model("toy", 350)  # for the tokenizer
    loaded = load_member(LoadedModel(model, toy.tokenizer, "toy"))
    assert isinstance(loaded, TransformersMember)
    loaded.forward._passes = desk.passes
    return loaded


class Counted:
    """How many sessions each pass was for."""

    def __init__(self, member: TransformersMember) -> None:
        self.sessions: list[int] = []
        compute = member.forward.compute

        def counting(parts: Sequence[Any]) -> None:
            self.sessions.append(len(parts))
            compute(parts)

        member.forward.compute = counting  # type: ignore[method-assign]


def at_once(desk: Desk, works: Sequence[Callable[[], None]]) -> None:
    """All ask before the first of them is computed."""
    opened = desk.hold()
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    for work in works:
        count = len(desk.passes._waiting)
        desk.start(lambda work=work: run(work))  # type: ignore[misc]
        until(lambda count=count: len(desk.passes._waiting) > count)  # type: ignore[misc]
    opened.set()
    desk.ended()
    assert errors == []


def fresh(member: TransformersMember, twin: Any, ids: Sequence[int], rows: int) -> Any:
    """What another copy of the model expects at the last places of a text."""
    whole = logits(twin, ids)[-rows:, : member.tokens.size]
    canonical = torch.tensor(whole.tolist())
    member.fold(canonical)
    return canonical.softmax(-1).numpy()


def walk(member: TransformersMember, twin: Any, seed: int) -> Callable[[], None]:
    """A session that is asked again and again, as drafts are; checked against a fresh read."""
    rng = random.Random(seed)
    prompt = rng.choices(range(1, 300), k=rng.choice([3, 20, 90]))

    def run() -> None:
        session, ids = member.start(prompt), []
        for _ in range(12):
            del ids[rng.randint(max(0, len(ids) - 9), len(ids)) :]
            since = len(ids) - rng.randint(0, min(2, len(ids)))
            ids += rng.choices(range(1, 300), k=rng.choice([1, 1, 4]))
            rows = session.score(ids, since)
            got = np.exp([row.dense() for row in rows])
            with ONE:
                expected = fresh(member, twin, prompt + ids, len(rows))
            np.testing.assert_allclose(got, expected, atol=2e-4)
        session.close()

    return run


@pytest.mark.parametrize("kind", [*SHARING, *REFUSED])
def test_sessions_at_the_same_time_expect_what_they_do_alone(kind: str) -> None:
    """Those of models that cannot share take turns, and are as right; the first pass included."""
    desk, twin = Desk(), built(kind)
    member = member_of(built(kind), desk)
    counted = Counted(member)
    at_once(desk, [walk(member, twin, seed) for seed in range(6)])
    assert (max(counted.sessions) > 1) == (kind not in ("LongRoPE", "dynamic"))
    assert member.forward.shares == (kind in SHARING)
    if kind in REFUSED:
        assert sum(count > 1 for count in counted.sessions) <= 1


def test_an_interrupted_probe_is_made_again() -> None:
    """Else a model that cannot share would be shared."""
    desk, model = Desk(), built("Gemma 2")
    member = member_of(model, desk)
    rows = [member.start([5, 6, 7]) for _ in range(2)]
    probe, tries = together.probe, []

    def interrupted(*given: Any) -> str | None:
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt
        return probe(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "probe", interrupted)
        for _ in range(2):
            opened = desk.hold()
            threads = [
                threading.Thread(target=suppressed, args=(lambda s=s: s.score([], 0),))
                for s in rows
            ]
            for thread in threads:
                thread.start()
            until(lambda: len(desk.passes._waiting) == 2)
            opened.set()
            for thread in threads:
                thread.join(PATIENCE)
            rows = [member.start([5, 6, 7]) for _ in range(2)]
    assert len(tries) == 2 and not member.forward.shares


def suppressed(work: Callable[[], object]) -> None:
    try:
        work()
    except KeyboardInterrupt:
        pass


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_pass_that_breaks_off_leaves_the_caches_of_others_as_they_were(
    layer: int, error: type[BaseException]
) -> None:
    """It breaks off where a layer's cache grows; whoever was with it is computed again."""
    desk, model = Desk(), built("Gemma 3")
    member = member_of(model, desk)
    grown, broken = model.model.layers[layer].self_attn.o_proj, []
    forward = grown.forward

    def fail(states: torch.Tensor) -> torch.Tensor:
        if len(broken) == 0 and states.shape[1] == 7:
            broken.append(1)
            raise error
        return forward(states)  # type: ignore[no-any-return]

    results: dict[int, Any] = {}
    prompts = {n: list(range(10 * n, 10 * n + 30)) for n in (1, 2, 3)}

    def ask(nth: int) -> Callable[[], None]:
        session = member.start(prompts[nth])
        session.score([], 0)

        def run() -> None:
            with_error = False
            try:
                results[nth] = session.score(list(range(3, 3 + nth)) + [9] * (nth == 3), 0)
            except KeyboardInterrupt:
                with_error = True
            assert with_error == (error is KeyboardInterrupt and nth not in results)

        return run

    works = [ask(n) for n in prompts]
    together.probe(model, member._windows)
    member.forward._tried = True
    grown.forward = fail
    at_once(desk, works)
    assert broken and len(results) >= 2
    for nth, rows in results.items():
        ids = list(range(3, 3 + nth)) + [9] * (nth == 3)
        got = np.exp([row.dense() for row in rows])
        expected = fresh(member, built("Gemma 3"), prompts[nth] + ids, len(rows))
        np.testing.assert_allclose(got, expected, atol=2e-4)


def test_a_pass_that_is_made_twice_counts_once() -> None:
    """Ctrl-C may come when the caches have grown, and nobody knows yet."""
    desk, model = Desk(), built("Gemma 3")
    member = member_of(model, desk)
    sessions = [member.start(range(n, n + 5)) for n in (3, 30)]
    compute, interrupted = member.forward.compute, []

    def late(parts: Sequence[Any]) -> None:
        compute(parts)
        if len(parts) == 2 and not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt

    member.forward.compute = late  # type: ignore[method-assign]
    rows: dict[int, Any] = {}

    def ask(nth: int) -> None:
        try:
            rows[nth] = sessions[nth].score([7, 8], 0)
        except KeyboardInterrupt:
            pass

    at_once(desk, [lambda: ask(0), lambda: ask(1)])
    assert interrupted and list(rows) == [1]
    got = np.exp([row.dense() for row in rows[1]])
    expected = fresh(member, built("Gemma 3"), [*range(30, 35), 7, 8], 3)
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_a_part_without_the_rows_that_are_asked_about_disturbs_nobody() -> None:
    """A long draft that is judged at many places, and finds room for few of its rows."""
    desk, model = Desk(), built("groups")
    member = member_of(model, desk)
    counted = Counted(member)
    long, short = member.start([5, 6]), member.start([6, 7])
    ids = [n % 300 for n in range(100, 165)]
    got: dict[str, Any] = {}

    def ask(name: str, session: Any, given: list[int]) -> Callable[[], None]:
        return lambda: got.update({name: session.score(given, 0)})

    at_once(desk, [ask("short", short, []), ask("long", long, ids)])
    assert counted.sessions == [2, 1] and len(got["long"]) == 66  # nobody is tried again
    for name, prompt, given in (("long", [5, 6], ids), ("short", [6, 7], [])):
        rows = np.exp([row.dense() for row in got[name]])
        expected = fresh(member, built("groups"), prompt + given, len(rows))
        np.testing.assert_allclose(rows, expected, atol=2e-4)


def test_an_error_of_the_model_reaches_who_asked() -> None:
    with pytest.raises(CannotShare):
        model = built("Gemma 2")
        together.forward(model, [Rows([1, 2], kv, 1) for kv in caches(model, 2)])
