"""Linear layers for small batches on a CPU.

Checking a draft multiplies a weight matrix with a handful of rows. torch's default kernel for that
is made for large batches, and reads badly served: on the machine of docs/performance.md five rows
take several times as long as one. oneDNN multiplies weights that are packed for it at about the
speed of one row. These are the operations that torch's own compiler uses when it freezes a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

_ROWS: Final = 5
"""The batch that weights are packed for; it serves 1 to 16 rows well."""


class PackedLinear(torch.nn.Module):
    """A linear layer with packed float32 weights, for inference only.

    Args:
        linear: The layer to stand in for. It is not changed.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The same as `torch.nn.Linear`, but for rounding."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, "none", [], ""
        )
        return output


def pack(model: Any) -> bool:
    """Packs the linear layers of a float32 model on the CPU, in place.

    A model elsewhere or of another type, or a torch without these operations, is left as it is.

    Args:
        model: A model that nobody else uses.

    Returns:
        Whether the layers were packed.
    """
    layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
    ]
    if {(c.weight.device.type, c.weight.dtype) for *_, c in layers} != {("cpu", torch.float32)}:
        return False
    if not _packs(min((c for *_, c in layers), key=lambda linear: linear.weight.numel())):
        return False
    with torch.inference_mode():
        for parent, name, child in layers:
            setattr(parent, name, PackedLinear(child))
    del layers, parent, child
    _let_go_of_read_pages(model)
    return True


def _let_go_of_read_pages(model: Any) -> None:
    """Maps what is left of the weights file anew.

    transformers maps the file into memory, and all that packing has read of it stays there for as
    long as one tensor of the mapping is used, as the embedding is. Of a new mapping only those
    rows of the embedding are read that are looked up.
    """
    file = Path(model.name_or_path) / "model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as weights:
        stored = set(weights.keys())
        for name, parameter in model.named_parameters():
            fresh = weights.get_tensor(name) if name in stored else None
            if fresh is not None and _begin_alike(fresh, parameter):
                parameter.data = fresh
            else:
                parameter.data = parameter.data.clone()


def _begin_alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype is b.dtype and torch.equal(a[:1], b[:1])


def _packs(linear: torch.nn.Linear) -> bool:
    """Whether packing one layer works here and gives the same."""
    inputs = torch.linspace(-1, 1, linear.in_features).repeat(2, 1)
    try:
        with torch.inference_mode():
            return torch.allclose(PackedLinear(linear)(inputs), linear(inputs), atol=1e-3)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
