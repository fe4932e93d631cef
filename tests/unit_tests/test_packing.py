"""Packed linear layers, on toys with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_models import SHAPE, toy_model
from transformers import AutoModelForCausalLM, LlamaConfig

from safe_integrations.models.load import load_member
from safe_integrations.models.spec import ModelSpec
from safe_integrations.models.transformers.member import TransformersMember
from safe_integrations.models.transformers.packing import (
    PackedLinear,
    _Files,
    _unwritten_regions,
    pack,
)

SIZE = 400
NOISE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def supported(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this type on this CPU."""
    return {
        torch.float32: torch.backends.mkldnn.is_available,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }[dtype]()


@pytest.mark.parametrize("dtype", NOISE)
def test_packed_layers_compute_the_same(dtype: torch.dtype) -> None:
    if not supported(dtype):
        pytest.skip(f"this CPU does not multiply {dtype}")
    model = toy_model("packed", SIZE).model.to(dtype)
    batches = [torch.arange(count)[None] for count in (1, 5, 40)]
    with torch.inference_mode():
        expected = [model(batch).logits for batch in batches]
        assert pack(model)
        assert isinstance(model.lm_head, PackedLinear)
        for batch, logits in zip(batches, expected, strict=True):
            torch.testing.assert_close(model(batch).logits, logits, atol=NOISE[dtype], rtol=0)


@pytest.mark.parametrize("odd", [torch.float64, torch.bfloat16])
def test_a_model_with_layers_of_several_types_stays_as_it_is(odd: torch.dtype) -> None:
    model = toy_model("mixed", SIZE).model
    model.lm_head.to(odd)
    assert not pack(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_a_type_that_cannot_be_packed_stays_as_it_is() -> None:
    model = toy_model("double", SIZE).model.double()
    assert not pack(model)
    assert model(torch.arange(5)[None]).logits.dtype is torch.float64


class Linear4bit(torch.nn.Linear):
    """What bitsandbytes makes of a layer: a `Linear` of another class with bytes for weights."""


class Quantised(torch.Tensor):
    """What torchao makes of a weight: a tensor of another class that says it is a float."""


@pytest.mark.parametrize("kind", ["layer", "weight"])
def test_a_quantised_model_stays_as_it_is(kind: str) -> None:
    """Its layers may still be `Linear`, and its weights must be neither packed nor copied."""
    model = toy_model("quantised", SIZE).model
    layer = model.model.layers[0].self_attn.q_proj
    if kind == "layer":
        layer.__class__ = Linear4bit
        weight = torch.zeros(128, 1, dtype=torch.uint8)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    else:
        layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert not pack(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    after = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert after == before


@pytest.mark.parametrize(
    "operations",
    [SimpleNamespace(), SimpleNamespace(_reorder_linear_weight=lambda weight: weight)],
    ids=["gone", "another signature"],
)
def test_a_torch_that_packs_another_way_leaves_a_model_as_it_is(
    operations: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These operations are private: a new torch must not keep models from loading."""
    monkeypatch.setattr(torch.ops, "mkldnn", operations)
    model = toy_model("plain", SIZE).model
    assert not pack(model)
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("where", ["first row", "middle row", "last row", "nowhere"])
def test_packing_takes_what_the_model_holds_not_what_its_file_says(
    where: str, tied: bool, tmp_path: Path
) -> None:
    """A file says what was loaded, not what became of it: one changed row is enough."""
    config = LlamaConfig(
        vocab_size=SIZE, max_position_embeddings=64, tie_word_embeddings=tied, **SHAPE
    )
    toy_model("saved", SIZE, config).model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    layer = model.model.layers[0].mlp.up_proj
    with torch.inference_mode():
        for weight in (layer.weight, model.model.embed_tokens.weight):
            rows = {"first row": 0, "middle row": len(weight) // 2, "last row": -1}
            if where in rows:
                weight[rows[where]] += 1
        kept = {name: weight.clone() for name, weight in model.named_parameters()}
        ids = torch.arange(0, SIZE, 7)[None, :60]
        expected = model(ids).logits
        assert pack(model)
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, kept[name]), name


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_what_was_not_written_to_is_read_from_its_file(tmp_path: Path) -> None:
    """The kernel's word for it: a page that is written to is no page of the file any more."""
    toy_model("saved", SIZE).model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    weight = model.model.embed_tokens.weight
    fresh = _Files(_unwritten_regions()).again(weight)
    assert fresh is not None and torch.equal(fresh, weight)
    assert fresh.data_ptr() != weight.data_ptr()
    with torch.inference_mode():
        weight[SIZE // 2] += 1
    assert _Files(_unwritten_regions()).again(weight) is None
    assert _Files(_unwritten_regions()).again(weight.clone()) is None


def mapped_from(tensor: torch.Tensor) -> Path | None:
    """The file that a tensor is mapped from; None where it has memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        region, _, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in region.split("-"))
        if start <= tensor.data_ptr() < end:
            return Path(name[0]) if name and name[0].startswith("/") else None
    raise AssertionError("the tensor is nowhere")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", ["one", "several"])
@pytest.mark.parametrize("revision", [None, "old"])
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_of_the_embedding_only_what_is_looked_up_is_read(
    where: str,
    revision: str | None,
    shards: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Packed layers take the place of the file's; the rest stays mapped, wherever it came from."""
    if not supported(dtype):
        pytest.skip(f"this CPU does not multiply {dtype}")
    name = f"org/{tmp_path.name}"  # another one each time: models stay loaded
    repository = tmp_path / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    model, tokenizer, _ = toy_model(name, SIZE)
    model.to(dtype).save_pretrained(
        snapshot, max_shard_size="30KB" if shards == "several" else "1GB"
    )
    tokenizer.save_pretrained(snapshot)
    assert (len(list(snapshot.glob("*.safetensors"))) > 1) == (shards == "several")
    (snapshot / "consolidated.safetensors").write_text("not fetched: no file of the model")
    (repository / "refs").mkdir()
    (repository / "refs" / (revision or "main")).write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    source = str(snapshot) if where == "folder" else name
    member = load_member(ModelSpec(source=source, revision=revision, device="cpu"))
    assert isinstance(member, TransformersMember)
    assert isinstance(member._model.lm_head, PackedLinear)
    embedding = member._model.get_input_embeddings().weight
    assert torch.equal(embedding, model.get_input_embeddings().weight)
    file = mapped_from(embedding)
    assert file is not None and file.parent == snapshot
