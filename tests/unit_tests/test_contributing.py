"""The map for newcomers shows the house as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import safe_integrations

ROOT = Path(__file__).parents[2]
PATHS = re.findall(r"`([\w/.]+(?:/|\.py))`", (ROOT / "CONTRIBUTING.md").read_text())
FOLDERS = [
    path.name
    for path in Path(safe_integrations.__file__).parent.iterdir()
    if (path / "__init__.py").exists()
]


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_what_it_names_is_there(path: str) -> None:
    """It sent people to an engine.py that was long gone."""
    assert (ROOT / path).exists() or (ROOT / "safe_integrations" / path).exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_named(folder: str) -> None:
    assert f"{folder}/" in PATHS


def test_the_changelog_begins_with_this_version() -> None:
    (first, *_) = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == safe_integrations.__version__
