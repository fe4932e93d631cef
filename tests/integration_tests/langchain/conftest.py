"""Settings for all tests with LangChain and real models."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_model() -> None:
    """Small models on a shared machine: threads that wait for each other cost more than they do."""
    torch.set_num_threads(1)
