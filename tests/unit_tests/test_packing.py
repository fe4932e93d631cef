"""Packed linear layers, on toys with random weights."""

from __future__ import annotations

import pytest
import torch
from toy_models import toy_model

from safe_integrations.backends.packing import PackedLinear, pack

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
