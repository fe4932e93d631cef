"""The cache of converted GGUF files: what makes a folder intact, and who may build it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from safe_integrations.errors import (
    LargeModelWarning,
    MissingDependencyError,
    ModelLoadError,
    ModelNotFoundError,
)
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


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Counts the files that are read from their first to their last byte."""
    read: list[Path] = []
    whole = gguf.sha256_of
    monkeypatch.setattr(gguf, "sha256_of", lambda path: read.append(path) or whole(path))
    return read


def test_a_file_is_read_once_not_once_per_process(
    cache: Path, source: Path, conversions: list[str], hashed: list[Path]
) -> None:
    """A file of gigabytes takes many seconds to read, only to learn that it is the one we know."""
    first = gguf.converted_file(source, silent)
    hashed.clear()
    assert gguf.converted_file(source, silent) == first
    assert hashed == []


def test_a_file_that_changed_is_read_again(
    cache: Path, source: Path, conversions: list[str], hashed: list[Path]
) -> None:
    """Also where it is as long as before: the old model must not answer for the new one."""
    first = gguf.converted_file(source, silent)
    source.write_bytes(b"GGUF and so ON")
    os.utime(source, ns=(1, 1))
    hashed.clear()
    assert gguf.converted_file(source, silent) != first
    assert source in hashed and len(conversions) == 2


@pytest.mark.parametrize("content", ["", "{", "7", "[]", "[14, 3]", "null"])
def test_a_damaged_note_is_as_none(
    cache: Path, source: Path, conversions: list[str], content: str
) -> None:
    first = gguf.converted_file(source, silent)
    (note,) = (cache / "gguf").glob("*.json")
    note.write_text(content)
    assert gguf.converted_file(source, silent) == first
    assert len(conversions) == 1


def test_several_may_note_the_same_file_at_once(
    cache: Path, source: Path, conversions: list[str]
) -> None:
    """Half a note, and one that goes away while it is read, count as none."""
    folder, stop = gguf.converted_file(source, silent), threading.Event()
    (note,) = (cache / "gguf").glob("*.json")
    found: list[object] = []

    def forget() -> None:
        while not stop.is_set():
            note.unlink(missing_ok=True)

    def ask() -> None:
        try:
            found.extend(gguf.converted_file(source, silent) for _ in range(30))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    forgetful = threading.Thread(target=forget)
    forgetful.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    forgetful.join()
    assert found == [folder] * 120 and len(conversions) == 1


@pytest.mark.parametrize("library", ["gguf", "filelock"])
def test_without_the_extra_only_what_is_converted_can_be_used(
    cache: Path,
    source: Path,
    conversions: list[str],
    library: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says what to install; what lies in the cache needs nothing any more."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, library, None)
        with pytest.raises(MissingDependencyError, match=f"m.gguf needs {library}.*\\[gguf\\]"):
            gguf.converted_file(source, silent)
    folder = gguf.converted_file(source, silent)
    monkeypatch.setitem(sys.modules, library, None)
    assert gguf.converted_file(source, silent) == folder


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    """A GGUF file of 40,960 weights, most of them with 8 bits, that is no model otherwise."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    kind = GGMLQuantizationType.Q8_0
    writer = GGUFWriter(tmp_path / "q.gguf", "llama")
    packed = quantize(np.ones((64, 608), np.float32), kind)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(2048, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "q.gguf"


SIZE = 40_960 * 4
"""What those weights take as float32, in bytes: by the file's own table of contents."""


@pytest.mark.parametrize("limit", [SIZE, SIZE - 1], ids=["small", "large"])
def test_what_becomes_large_is_said_before(
    cache: Path, quantised: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven times the file, on disk and in memory, is not what somebody expects who saves room."""
    monkeypatch.setattr(gguf, "LARGE", limit)
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ModelLoadError):
        warnings.simplefilter("always")
        gguf.converted_file(quantised, told.append)  # it has weights, but is no model
    ours = [str(w.message) for w in caught if w.category is LargeModelWarning]
    if limit == SIZE:
        assert ours == []
    else:
        (message,) = ours
        assert "q.gguf" in message and f"{SIZE / 1e9:.1f} GB in {cache}" in message
        assert "as much memory" in message


@pytest.mark.parametrize("free", [SIZE - 1, SIZE])
def test_what_the_disk_has_no_room_for_is_not_begun(
    cache: Path, quantised: Path, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is written until the disk is full, and everybody on it suffers."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    told: list[str] = []
    reason = "room.*SAFE_INTEGRATIONS_CACHE" if free < SIZE else "cannot convert"
    with pytest.raises(ModelLoadError, match=f"q.gguf.*{reason}"):
        gguf.converted_file(quantised, told.append)
    assert any("converting" in line for line in told) == (free == SIZE)
