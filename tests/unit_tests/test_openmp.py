"""Whose teams of OpenMP threads are sent home; on libraries that only look like one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import pytest

from safe_integrations.models import openmp

pytestmark = pytest.mark.skipif(not hasattr(os, "RTLD_NOLOAD"), reason="no GNU's OpenMP here")

FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which library was asked to pause, and how softly; two of these are one under two names."""
    calls: list[tuple[str, int]] = []

    def pause(name: str) -> Callable[[int], int]:
        return FUNCTION(lambda kind: calls.append((name, kind)) or 0)

    one = pause("one")
    loaded = {"one": one, "the same": one, "other": pause("other")}

    class Library:
        def __init__(self, name: str, mode: int) -> None:
            assert mode & os.RTLD_NOLOAD, "it loads nothing"
            if name == "not loaded":
                raise OSError
            if name in loaded:
                self.omp_pause_resource_all = loaded[name]

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(openmp, "_pauses", {})
    return calls


def test_each_copy_is_paused_once(asked: list[Any]) -> None:
    """torch and llama.cpp may share one."""
    openmp.uses_openmp("not loaded", "another kind", "one")
    openmp.uses_openmp("the same", "other")
    openmp.send_team_home()
    assert asked == [("one", 1), ("other", 1)]


def test_where_nothing_computes_with_openmp_nothing_is_paused(asked: list[Any]) -> None:
    openmp.uses_openmp("not loaded", "another kind")
    openmp.send_team_home()
    assert asked == []
