"""Models do not survive a fork: the threads that compute are not copied, and work would wait."""

from __future__ import annotations

import os

from safe_integrations.errors import ModelError

_home: int | None = None


def check_process(name: str) -> None:
    """Makes this process the home of models; from then on processes forked off it have none.

    Raises:
        ModelError: This process was forked off one that has loaded a model.
    """
    global _home
    if _home is None:
        _home = os.getpid()
    elif _home != os.getpid():
        raise ModelError(
            f"{name}: this process was forked off one that has loaded models, and the threads "
            "that compute with them are not here: load models in each process, and start processes "
            "with multiprocessing.get_context('spawn')"
        )
