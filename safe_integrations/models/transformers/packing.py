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


def pack(model: Any) -> bool:
    """Packs the linear layers of a model on the CPU, in place.

    A model elsewhere, quantised, or with layers of several types, or a torch or a CPU without these
    operations, is left as it is.

    Args:
        model: A model as it was loaded, that nobody else uses. What is mapped from files, as
            safetensors is, is never in memory twice on Linux.

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
    regions = _unwritten_regions()
    with torch.inference_mode():
        while layers:  # the largest first: the others' room is still free while it is there twice
            batch = [layers.pop()]
            while layers and sum(linear.weight.nbytes for *_, linear in batch) < _BATCH:
                batch.append(layers.pop())
            files = _Files(regions)
            for parent, attribute, linear in batch:
                fresh = files.again(linear.weight)
                weight = linear.weight if fresh is None else fresh
                setattr(parent, attribute, PackedLinear(weight, linear.bias))
    files = _Files(regions)
    for parameter in model.parameters():
        fresh = files.again(parameter)
        parameter.data = parameter.data.clone() if fresh is None else fresh
    return True


_Region = tuple[int, int, int, str]
"""Where a file is mapped into memory: first and last address, and offset in the file, and file."""


def _unwritten_regions() -> list[_Region]:
    """Private mappings of files in which nothing was changed: what is there is in the file.

    The kernel knows that of every page without reading it, since a page that is written to becomes
    one of the process's own. Other systems than Linux are not asked.
    """
    smaps = Path("/proc/self/smaps")
    lines = smaps.read_text().splitlines() if smaps.exists() else []
    regions: list[_Region] = []
    region: _Region | None = None
    for key, *values in (line.split(maxsplit=5) for line in lines):
        if not key.endswith(":"):  # a new region: addresses, mode, offset, device, inode, file
            region = None
            if len(values) == 5 and values[0].endswith("p") and Path(values[4]).is_file():
                start, _, end = key.partition("-")
                region = int(start, 16), int(end, 16), int(values[1], 16), values[4]
        elif region and key == "Anonymous:" and values[0] == "0":
            regions.append(region)
        elif key == "Swap:" and values[0] != "0" and region in regions:
            regions.remove(region)
    return regions


class _Files:
    """Files of weights, each mapped into memory once more.

    What is read of a mapping stays in memory for as long as one tensor in it is used, as the
    embedding is. So packing reads a few layers at a time from a mapping of their own, that goes
    with them; and of the embedding's new mapping only those rows are read that are looked up.
    """

    def __init__(self, regions: list[_Region]) -> None:
        self._regions = regions
        self._mapped: dict[str, torch.Tensor] = {}

    def again(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The same numbers from the new mapping; None where they are not as they are in a file."""
        first, size = tensor.data_ptr(), tensor.nbytes
        for start, end, offset, file in self._regions:
            at = first - start + offset
            inside = start <= first and first + size <= end
            if inside and tensor.is_contiguous() and at % tensor.itemsize == 0:
                if file not in self._mapped:
                    self._mapped[file] = torch.from_file(
                        file, shared=False, size=Path(file).stat().st_size, dtype=torch.uint8
                    )
                return self._mapped[file][at : at + size].view(tensor.dtype).view(tensor.shape)
        return None


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
    except Exception:  # these operations are no part of torch's interface: any release may differ
        return False
