"""The README's Python runs, block after block, as a reader would type it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_python_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    printed = []
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    assert "Paris" in printed[0] and "pieces were ensembled" in printed[0]
    assert set(json.loads(printed[1])) == {"name", "capital"}
    assert len(printed[2]) > 10 and len(printed[3]) > 10


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[2]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / link).exists(), link
