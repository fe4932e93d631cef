"""The cache of converted GGUF files: what makes a folder intact, and who may build it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from safe_integrations.errors import ModelLoadError, ModelNotFoundError
from safe_integrations.models.transformers import gguf


def silent(_: str) -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFE_INTEGRATIONS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF and so on")
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the slow conversion, and counts."""
    done: list[str] = []

    def convert(path: Path, target: Path, label: str, on_progress: object) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes(path.read_bytes() * 100)
        (target / "config.json").write_text("{}")
        done.append(label)

    monkeypatch.setattr(gguf, "_convert", convert)
    return done


def test_a_file_is_converted_once(cache: Path, source: Path, conversions: list[str]) -> None:
    first = gguf.converted_file(source, silent)
    assert gguf.converted_file(source, silent) == first
    assert first.is_relative_to(cache)
    assert conversions == ["m.gguf"]
    assert [p.name for p in first.parent.iterdir() if p.suffix == ".tmp"] == []


def test_the_content_is_the_key(cache: Path, source: Path, conversions: list[str]) -> None:
    first = gguf.converted_file(source, silent)
    source.write_bytes(b"GGUF of another kind")
    assert gguf.converted_file(source, silent) != first
    assert len(conversions) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_copy_is_rebuilt(
    cache: Path, source: Path, conversions: list[str], name: str, damage
) -> None:
    folder = gguf.converted_file(source, silent)
    damage(folder / name)
    assert not gguf.is_intact(folder)
    assert gguf.is_intact(gguf.converted_file(source, silent))
    assert len(conversions) == 2


def test_a_touched_copy_is_still_intact(cache: Path, source: Path, conversions: list[str]) -> None:
    """A backup or a copy changes times only: the hash decides."""
    folder = gguf.converted_file(source, silent)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert gguf.is_intact(folder)


def test_a_crash_half_way_leaves_nothing_that_counts(
    cache: Path, source: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_write_manifest", crash)
        with pytest.raises(ModelLoadError, match="No space left.*SAFE_INTEGRATIONS_CACHE"):
            gguf.converted_file(source, silent)
    left = cache / "gguf" / f"{gguf.sha256_of(source)[:32]}-v{gguf.VERSION}.dead.tmp"
    left.mkdir()  # a killed process cannot tidy up
    assert gguf.is_intact(gguf.converted_file(source, silent))
    assert not left.exists()


def test_of_several_at_once_one_converts(cache: Path, source: Path, conversions: list[str]) -> None:
    told: list[str] = []
    threads = [
        threading.Thread(target=gguf.converted_file, args=(source, told.append)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert conversions == ["m.gguf"]


def test_the_file_must_be_the_one_that_was_named(
    cache: Path, source: Path, conversions: list[str]
) -> None:
    with pytest.raises(ModelLoadError, match="damaged"):
        gguf.converted("0" * 64, lambda _: source, "m.gguf", silent)


def test_a_missing_file(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="none.gguf"):
        gguf.converted_file(tmp_path / "none.gguf", silent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\3\4 something else", "not a GGUF file"),
        (b"GGUF", "truncated or damaged"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16 + b"\1" * 50, "truncated or damaged"),
    ],
)
def test_a_file_that_is_no_whole_gguf(
    cache: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        gguf.converted_file(path, silent)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SAFE_INTEGRATIONS_CACHE": "/a"}, "/a"),
        ({"SAFE_INTEGRATIONS_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/safe_integrations"),
        ({"HOME": "/h"}, "/h/.cache/safe_integrations"),
    ],
)
def test_where_the_cache_is(
    env: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SAFE_INTEGRATIONS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert gguf.cache_dir() == Path(expected)
