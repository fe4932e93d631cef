"""Linear layers for small batches on a CPU.

Checking a draft multiplies a weight matrix with a handful of rows. torch's default kernel for that
is made for large batches, and reads badly served: on the machine of docs/performance.md five rows
take several times as long as one. oneDNN multiplies weights that are packed for it at about the
speed of one row. These are the operations that torch's own compiler uses when it freezes a model.
"""

from __future__ import annotations

from typing import Any, Final

import torch

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
    if (
        not layers
        or not _packs(layers[0][2])
        or {c.weight.device.type for *_, c in layers} != {"cpu"}
    ):
        return False
    if {c.weight.dtype for *_, c in layers} != {torch.float32}:
        return False
    with torch.inference_mode():
        for parent, name, child in layers:
            setattr(parent, name, PackedLinear(child))
    return True


def _packs(linear: torch.nn.Linear) -> bool:
    """Whether packing one layer works here and gives the same."""
    if linear.weight.dtype is not torch.float32:
        return False
    inputs = torch.linspace(-1, 1, linear.in_features).repeat(2, 1)
    try:
        with torch.inference_mode():
            return torch.allclose(PackedLinear(linear)(inputs), linear(inputs), atol=1e-3)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
