"""Random instances of a grammar, byte by byte and without a model."""

from __future__ import annotations

from random import Random
from time import process_time

import numpy as np

from safe_integrations.structure.closing import BYTES
from safe_integrations.structure.constraint import Constraint


class Walks:
    """Random instances of one grammar.

    Args:
        rule: The right side of a Lark rule.

    Attributes:
        seconds: Processor time that each search for a way to the end took.

    Raises:
        InvalidArgumentError: The library does not accept it.
    """

    def __init__(self, rule: str) -> None:
        self._cursor = Constraint(f"start: {rule}", "rule", rule).cursor(BYTES)
        self.seconds: list[float] = []

    def instance(self, steps: int, random: Random) -> bytes | None:
        """A sentence of the grammar: at random for some bytes, then to its end.

        Args:
            steps: Bytes to choose at random.
            random: Where they come from.

        Returns:
            None where no end was found.

        Raises:
            GenerationError: The grammar became too complex for the library.
        """
        text = bytearray()
        while len(text) < steps:
            allowed = self._cursor.allowed(text)
            found = range(256) if allowed is None else np.flatnonzero(allowed[:256]).tolist()
            if not found:
                break
            text.append(random.choice(found))
        start = process_time()
        end = self._cursor.closing(bytes(text))
        self.seconds.append(process_time() - start)
        return None if end is None else bytes(text) + end
