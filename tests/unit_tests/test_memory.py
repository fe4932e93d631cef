"""Memory of KV caches: what there is, what an answer takes, and that toys stay within it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_models import SHAPE, toy_model
from transformers import (
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from safe_integrations.calls.forms import FORMS
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled, InvalidArgumentError
from safe_integrations.models import admission, memory
from safe_integrations.models.load import load_member, unload_models
from safe_integrations.models.memory import available_memory, available_on
from safe_integrations.models.spec import ModelSpec
from safe_integrations.models.transformers.kv_cache import position_bytes, positions
from safe_integrations.models.transformers.member import TransformersMember, TransformersSession
from safe_integrations.safe_engine import SafeEngine

SIZE = 400
ODD: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(vocab_size=SIZE, **SHAPE),
    "wide heads": Qwen3Config(vocab_size=SIZE, head_dim=32, **SHAPE),
    "windows": Gemma3TextConfig(
        vocab_size=SIZE, head_dim=8, sliding_window=16, **{**SHAPE, "num_hidden_layers": 3}
    ),
    "latent": DeepseekV3Config(
        vocab_size=SIZE, q_lora_rank=None, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=8, first_k_dense_replace=1, **{**SHAPE, "num_key_value_heads": 2},
    ),
}  # fmt: skip


def member_of(limit: int | None = None, size: int = SIZE, **more: Any) -> TransformersMember:
    """A toy with a limit."""
    model = toy_model(f"toy{size}", size, **more)
    loaded = load_member(model)
    assert isinstance(loaded, TransformersMember)
    return TransformersMember(
        model.model, loaded.tokens, loaded.render,
        name=model.name, context_window=8192, reuse_bytes=0, cache_bytes=limit,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_takes_what_is_reserved_for_it(kind: str, dtype: torch.dtype) -> None:
    """For most models the config tells it; the first pass does for all."""
    member = member_of(config=ODD[kind])
    member._model.to(dtype)
    told = member_of(config=ODD[kind]).memory.position_bytes * dtype.itemsize // 4
    session = member.start(range(20, 60))
    session.score([], 0)
    assert session._cached is not None
    kv = session._cached.kv
    assert kv.nbytes == positions(40) * member.memory.position_bytes
    assert kind == "latent" or told == member.memory.position_bytes
    session.close()


def test_a_config_that_tells_nothing_is_no_reason_to_refuse_a_model() -> None:
    member = member_of()
    config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(hidden_size=4))
    assert position_bytes(config, 3, 4) == 0 < member.memory.position_bytes


def test_caches_of_all_answers_stay_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers fit; sixteen are asked for, of a pair and of the pair swapped."""
    monkeypatch.setattr(admission, "_PATIENCE", 1000.0)
    options = GenerationConfig(max_tokens=24)
    questions = [f"{'Once upon a time. ' * n}Question {n}?" for n in range(8)]
    longest = 250  # tokens
    limits = [2 * positions(longest) * member_of(size=n).memory.position_bytes for n in (400, 450)]
    members = [member_of(limit, size) for limit, size in zip(limits, (400, 450), strict=True)]
    most = {member.name: 0 for member in members}
    at_once = {member.name: 0 for member in members}
    for member in members:
        watch(member, most, at_once, monkeypatch)
    engines = [SafeEngine(members[0], members[1:]), SafeEngine(members[1], members[:1])]
    texts: dict[tuple[int, str], str] = {}
    waited: list[float] = []

    def ask(which: int, question: str) -> None:
        result = engines[which].complete(question, options)
        texts[which, question] = result.text
        waited.append(result.statistics.waited_seconds)

    threads = [
        threading.Thread(target=ask, args=(which, question), daemon=True)
        for question in questions
        for which in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == len(threads) and any(waited)
    for member, limit in zip(members, limits, strict=True):
        assert 0 < most[member.name] <= limit
        assert at_once[member.name] >= 2, "they are not made one by one"
    (which, question), text = next(iter(texts.items()))
    assert engines[which].complete(question, options).text == text


def watch(
    member: TransformersMember,
    most: dict[str, int],
    at_once: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adds up the caches of a member's open sessions, whenever one of them has grown."""
    caches: dict[TransformersSession, Any] = {}
    lock = threading.Lock()
    start = member.start

    def watched(prompt: Sequence[int], cancel: Callable[[], bool] = never) -> TransformersSession:
        session = start(prompt, cancel)
        score, close = session.score, session.close
        assert session._cached is not None
        with lock:
            caches[session] = session._cached.kv

        def scored(*asked: Any) -> Any:
            rows = score(*asked)
            with lock:
                sizes = [kv.nbytes for kv in caches.values()]
                most[member.name] = max(most[member.name], sum(sizes))
                at_once[member.name] = max(at_once[member.name], sum(size > 0 for size in sizes))
            return rows

        def closed() -> None:
            with lock:
                del caches[session]
            close()

        monkeypatch.setattr(session, "score", scored)
        monkeypatch.setattr(session, "close", closed)
        return session

    monkeypatch.setattr(member, "start", watched)


def test_an_answer_in_flight_makes_others_wait_for_the_same_model() -> None:
    """Under whatever name, in whatever form, and in whatever engine."""
    member = member_of(0)
    holder = SafeEngine(member).generate("x", GenerationConfig(max_tokens=4))
    next(holder)
    form = next(iter(FORMS.values()))
    for engine in (
        SafeEngine(member.writing(form)),
        SafeEngine(member_of(), [member]),
        SafeEngine(member_of(), [member_of(), member]),  # called toy400#3
    ):
        asked = iter([False] * 3)
        with pytest.raises(GenerationCancelled):
            next(engine.generate("x", cancel=lambda asked=asked: next(asked, True)))  # type: ignore[misc]
    holder.close()
    assert SafeEngine(member).complete("x", GenerationConfig(max_tokens=4)).statistics.tokens


def test_models_that_are_named_have_one_limit_for_all_engines(tmp_path: Path) -> None:
    model, tokenizer, _ = toy_model("saved", SIZE)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    spec = ModelSpec(source=str(tmp_path), device="cpu", cache_bytes=7)
    members = [load_member(spec), load_member(spec)]
    assert isinstance(members[0], TransformersMember) and members[0] is members[1]
    assert members[0].memory._limit == 7
    unload_models()


def test_a_limit_is_a_number_of_bytes() -> None:
    with pytest.raises(InvalidArgumentError, match="cache_bytes"):
        ModelSpec(source="x", cache_bytes=-1)


# What there is


def test_memory_of_this_machine_is_found() -> None:
    free = available_memory()
    assert free is not None and 1 << 20 < free
    assert member_of().memory._free() is not None


def test_without_psutil_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the command line; models must answer without it."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert available_memory() is None
    member = member_of()
    SafeEngine(member).complete("x", GenerationConfig(max_tokens=2))
    assert member.memory._limit == float("inf")


def test_a_containers_share_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    whole = available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert whole is not None and whole > 1000
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_memory() == 400
    (tmp_path / "memory.max").write_text("10\n")
    assert available_memory() == 0


def test_devices_tell_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of a pretended GPU; what torch keeps of it for later is free, too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 + device.index, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 70)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 30)
    gpus = [torch.device("cuda", n) for n in (0, 1, 0, 1)]
    assert available_on(gpus) == 130 + 131
    assert available_on([*gpus, torch.device("meta")]) == 130 + 131
    assert available_on([torch.device("mps")]) == 40
    assert available_on([gpus[0], torch.device("xpu")]) is None
