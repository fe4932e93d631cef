"""Linear layers for small batches on a CPU.

Checking a draft multiplies a weight matrix with a handful of rows. torch's default kernel for that
is made for large batches, and reads badly served: on the machine of docs/performance.md five rows
take several times as long as one. oneDNN multiplies weights that are packed for it at about the
speed of one row. These are the operations that torch's own compiler uses when it freezes a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

_ROWS: Final = 5
"""The batch that weights are packed for; it serves 1 to 16 rows well."""

_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far a packed layer may be off, absolute and relative, by the type of its weights."""

_BATCH: Final = 64 << 20
"""Weights to have in memory twice while they are packed, in bytes, or one layer if it is larger."""


class PackedLinear(torch.nn.Module):
    """A linear layer with packed weights, for inference only.

    Args:
        weight: The weights of the layer to stand in for. They are read once and not kept.
        bias: Its bias.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The same as `torch.nn.Linear`, but for rounding."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, "none", [], ""
        )
        return output


def pack(model: Any, folder: Path | None = None) -> bool:
    """Packs the linear layers of a model on the CPU, in place.

    A model elsewhere, quantised, or with layers of several types, or a torch or a CPU without these
    operations, is left as it is.

    Args:
        model: A model as it was loaded, that nobody else uses.
        folder: Where the files lie that it was loaded from. With them its weights are never in
            memory twice.

    Returns:
        Whether the layers were packed.
    """
    parameters = list(model.parameters())
    if not all(type(p) is torch.nn.Parameter and p.is_floating_point() for p in parameters):
        return False  # quantised: packed in another way already
    layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
    ]
    if len({(c.weight.device, c.weight.dtype) for *_, c in layers}) != 1:
        return False
    layers.sort(key=lambda layer: layer[2].weight.numel())
    if not _packs(layers[0][2]):
        return False
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    files = {} if folder is None else _files_of_parameters(folder)
    with torch.inference_mode():
        while layers:  # the largest first: the others' room is still free while it is there twice
            batch = [layers.pop()]
            while layers and sum(linear.weight.nbytes for *_, linear in batch) < _BATCH:
                batch.append(layers.pop())
            read = {names[id(linear.weight)]: linear.weight for *_, linear in batch}
            fresh = _mapped_anew(read, files)
            for parent, attribute, linear in batch:
                weight = fresh.get(names[id(linear.weight)], linear.weight)
                setattr(parent, attribute, PackedLinear(weight, linear.bias))
    kept = dict(model.named_parameters())
    fresh = _mapped_anew(kept, files)
    for name, parameter in kept.items():
        parameter.data = fresh[name] if name in fresh else parameter.data.clone()
    return True


def _files_of_parameters(folder: Path) -> dict[str, Path]:
    """Which weights file of a folder holds which parameter.

    A file that cannot be read is none of those that the model was loaded from.
    """
    files: dict[str, Path] = {}
    for file in folder.glob("*.safetensors"):
        with suppress(SafetensorError), safe_open(file, framework="pt") as weights:
            files |= dict.fromkeys(weights.keys(), file)
    return files


def _mapped_anew(
    parameters: Mapping[str, torch.Tensor], files: Mapping[str, Path]
) -> dict[str, torch.Tensor]:
    """Parameters of a model once more, in a new mapping of its weights files.

    transformers maps a file into memory, and all that is read of it stays there for as long as
    one tensor of the mapping is used, as the embedding is. So packing reads a few layers at a time
    from a mapping of their own, that goes with them; and of the embedding's new mapping only those
    rows are read that are looked up.

    Returns:
        Those that are in a file as they are in the model.
    """
    fresh: dict[str, torch.Tensor] = {}
    stored = parameters.keys() & files.keys()
    for file in {files[name] for name in stored}:
        with safe_open(file, framework="pt") as weights:
            fresh |= {name: weights.get_tensor(name) for name in stored if files[name] == file}
    return {name: tensor for name, tensor in fresh.items() if _alike(tensor, parameters[name])}


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same, by their first and last row: all would have to be read."""
    return (
        a.shape == b.shape
        and a.dtype is b.dtype
        and torch.equal(a[:1], b[:1])
        and torch.equal(a[-1:], b[-1:])
    )


def _packs(linear: torch.nn.Linear) -> bool:
    """Whether packing one layer works here and gives the same."""
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype not in _TOLERANCE:
        return False
    inputs = torch.linspace(-1, 1, linear.in_features, dtype=weight.dtype).repeat(2, 1)
    tolerance = _TOLERANCE[weight.dtype]
    try:
        with torch.inference_mode():
            packed = PackedLinear(weight, linear.bias)
            return torch.allclose(packed(inputs), linear(inputs), atol=tolerance, rtol=tolerance)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
