"""The forward passes of one model: for one session, or for several at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled
from safe_integrations.models.openmp import uses_openmp
from safe_integrations.models.passes import ROWS_ALONE, ROWS_TOGETHER, Part, Price, passes_on
from safe_integrations.models.transformers import together
from safe_integrations.models.transformers.kv_cache import CroppableCache
from safe_integrations.models.transformers.logits import Fold, distributions

_log: Final = logging.getLogger(__name__)

_torch: Final = Path(torch.__file__).parent
uses_openmp("libgomp.so.1", *_torch.parent.glob("torch*/libgomp*"), *_torch.glob("lib/libgomp*"))

_ROWS_ON_A_GPU: Final = 1024
"""Rows of a pass that sessions share there; a guess, not measured."""


class Computed(NamedTuple):
    """What became of new token ids.

    Attributes:
        taken: How many were forwarded, from the first on; 0 where `cancel` said to stop before.
        rows: What is expected at the last positions that were asked for; of no use where the last
            id was not taken.
        seconds: Time in the model; of a pass that was shared, this session's part of it.
    """

    taken: int
    rows: Sequence[DenseDistribution]
    seconds: float


class _Ids(Part):
    def __init__(
        self,
        model: Forward,
        ids: Sequence[int],
        kv: CroppableCache,
        wanted: int,
        fold: Fold,
        cancel: Callable[[], bool],
    ) -> None:
        super().__init__(model, len(ids), wanted, cancel)
        self.ids = ids
        self.kv = kv
        self.begin = kv.get_seq_length()
        self.fold = fold
        self.result: Sequence[DenseDistribution] = ()


class Forward:
    """A model on its device.

    Args:
        model: A causal language model of transformers, in eval mode.
        windows: The sliding window of each layer; None for full attention.
        name: How errors and logs call it.
    """

    def __init__(self, model: Any, windows: Sequence[int | None], name: str) -> None:
        self.device = model.device  # a search through all parameters, each time it is asked
        self._model = model
        self._windows = windows
        self._name = name
        refused = together.why_not(model.config)
        self.shares = True
        self._refuse(refused)
        on_cpu = self.device.type == "cpu"
        self.rows_alone = ROWS_ALONE if on_cpu and refused is None else sys.maxsize
        self.rows_together = ROWS_TOGETHER if on_cpu else _ROWS_ON_A_GPU
        self.price = Price()
        self._tried = False
        self._passes = passes_on(str(self.device))

    stop: Final = None  # torch cannot be

    def __call__(
        self,
        ids: Sequence[int],
        kv: CroppableCache,
        rows: int,
        fold: Fold,
        cancel: Callable[[], bool] = never,
    ) -> Computed:
        """Forwards new ids, all or the first of them; `kv` holds what is before, and grows.

        Waits while the device is busy. Where others wait too, the pass may be shared with them.

        Args:
            ids: New token ids.
            kv: The cache.
            rows: How many last positions are asked about.
            fold: Maps logits to ids.
            cancel: Asked whether to stop, while it waits.

        Raises:
            GenerationCancelled: `cancel` said so during a pass. The cache may still grow.
        """
        part = _Ids(self, ids, kv, rows, fold, cancel)
        try:
            self._passes.run(part)
        except GenerationCancelled:
            if part.taken:
                raise
        return Computed(part.taken, part.result, part.seconds)

    def leave(self) -> None:
        """Told where a session is closed (`Passes.leave`)."""
        self._passes.leave()

    def compute(self, parts: Sequence[Part]) -> None:
        """One pass (`passes.Model.compute`)."""
        asked = [part for part in parts if isinstance(part, _Ids)]
        for part in asked:  # of a pass that broke off it may hold more
            part.kv.cut(part.begin)
        with torch.inference_mode():
            logits = [self._alone(asked[0])] if len(asked) == 1 else self._together(asked)
            for part, own in zip(asked, logits, strict=True):
                # as a view, a row would keep the rows of all others in memory
                own = own.clone() if len(asked) > 1 else own
                part.result = distributions(own, part.fold)  # waits for the device

    def _alone(self, part: _Ids) -> torch.Tensor:
        batch = torch.tensor([part.ids[: part.taken]], device=self.device)
        logits: torch.Tensor = self._model(
            input_ids=batch, past_key_values=part.kv, use_cache=True, logits_to_keep=part.wanted
        ).logits[0, -part.wanted :]
        return logits

    def _together(self, parts: Sequence[_Ids]) -> list[torch.Tensor]:
        if not self._tried:
            self._refuse(together.probe(self._model, self._windows))
            self._tried = True
        if not self.shares:
            raise together.CannotShare  # they are tried alone
        rows = [together.Rows(p.ids[: p.taken], p.kv, min(p.wanted, p.taken)) for p in parts]
        try:
            return together.forward(self._model, rows)
        except together.CannotShare as refusal:
            self._refuse(str(refusal))
            raise

    def _refuse(self, why: str | None) -> None:
        if why is not None:
            self.shares = False
            _log.info("%s: answers take turns, they cannot share passes: %s", self._name, why)
