"""What a GGUF file tells of itself, read without a library."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter

from safe_integrations.errors import ModelLoadError
from safe_integrations.models.llama_cpp.metadata import context_length, token_types, values


def test_all_kinds_of_values_are_read_and_lists_of_texts_left_out(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "arch")
    kinds = {
        GGUFValueType.UINT8: 250, GGUFValueType.INT8: -3, GGUFValueType.UINT16: 65000,
        GGUFValueType.INT16: -300, GGUFValueType.UINT32: 4_000_000_000,
        GGUFValueType.INT32: -70000, GGUFValueType.FLOAT32: 0.5, GGUFValueType.BOOL: True,
        GGUFValueType.STRING: "Größe\n", GGUFValueType.UINT64: 1 << 63,
        GGUFValueType.INT64: -(1 << 40), GGUFValueType.FLOAT64: 1e300,
    }  # fmt: skip
    for i, (kind, value) in enumerate(kinds.items()):
        writer.add_array(f"list.{i}", ["é", "", "xyz"] if i % 2 else [1, 2, 3])
        writer.add_key_value(f"value.{i}", value, kind)
    writer.add_array("numbers", [0.5, 1.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    told = dict(values(tmp_path / "a.gguf"))
    assert told.pop("general.architecture") == "arch"
    lists = {key: told.pop(key) for key in list(told) if isinstance(told[key], np.ndarray)}
    assert {key: list(numbers) for key, numbers in lists.items()} == {
        **{f"list.{i}": [1, 2, 3] for i in range(0, len(kinds), 2)}, "numbers": [0.5, 1.5]
    }  # fmt: skip
    assert told == {f"value.{i}": value for i, value in enumerate(kinds.values())}


def test_what_tokens_are_for(tmp_path: Path) -> None:
    path = gguf_files.byte_level(tmp_path / "a.gguf", ["a", "b"], [], added={"<end>": 3})
    types = token_types(path)
    assert types is not None and types.tolist() == [1, 1, 3]
    writer = GGUFWriter(tmp_path / "b.gguf", "arch")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert token_types(tmp_path / "b.gguf") is None


def test_the_context_length(tmp_path: Path) -> None:
    toy = {"added": {"<end>": 3}}
    letters = list(gguf_files.ALPHABET.values())
    silent = gguf_files.byte_level(tmp_path / "a.gguf", letters, [], **toy)
    assert context_length(silent) is None
    speaking = gguf_files.byte_level(tmp_path / "b.gguf", letters, [], weights=True, **toy)
    assert context_length(speaking) == 64


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60) + b"key",
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 2, 1, b"k", 9, 8, 5),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 2, 1, b"k", 9, 4, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1),
        b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 8, 9) + b"text",
        b"GGUF" + struct.pack("<IQQQ1sIIQQQ", 3, 0, 1, 1, b"k", 9, 8, 2, (1 << 64) - 1, 0),
        b"PK\3\4",
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(head)
    with pytest.raises(ModelLoadError, match="bad.gguf is (truncated|not a GGUF file)"):
        dict(values(path))


def test_a_file_that_cannot_be_opened_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"{tmp_path} cannot be read: "):
        context_length(tmp_path)
