"""GGUF files, converted once to a folder of safetensors that loads in seconds.

transformers reads GGUF, but needs most of a minute for a small model, mostly to parse the same
metadata several times in Python. So a file is converted once, to float32 (a quantised weight times
its scale is exact there), into a folder of the user's cache named by the file's content. The
folder appears in one step, under a lock, and a manifest tells whether it is still what was written.
A 4-bit file becomes seven times as large, so what will be large is said before it is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from safe_integrations.errors import (
    LargeModelWarning,
    MissingDependencyError,
    ModelLoadError,
    ModelNotFoundError,
    UnknownSplittingWarning,
)
from safe_integrations.models.quiet import quiet
from safe_integrations.models.spec import Progress
from safe_integrations.models.transformers.gguf_tokenizer import read_tokenizer

VERSION: Final = 2
"""Part of every folder's name: raise it when a conversion would come out differently."""

LARGE: Final = 2_000_000_000
"""Bytes of a converted model from which on a `LargeModelWarning` tells what it takes."""

_MANIFEST: Final = "manifest.json"
_UNKNOWN: Final = "unknown_splitting"
"""A file in the folder of a model whose text we do not know how to split: the name of the way."""

_patching = threading.Lock()


def cache_dir() -> Path:
    """Where converted models are kept: `SAFE_INTEGRATIONS_CACHE`, or the user's cache directory."""
    if chosen := os.environ.get("SAFE_INTEGRATIONS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "safe_integrations"


def converted_file(path: Path, on_progress: Progress) -> Path:
    """The folder that a GGUF file is converted to, converting it first if need be.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: The file is truncated, damaged or of an unknown kind, or there is no room.
        MissingDependencyError: `gguf` or `filelock` is not installed.

    Warns:
        LargeModelWarning: The converted model takes more than `LARGE` bytes.
        UnknownSplittingWarning: The file names a way to split text that we do not know, or none.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: there is no such GGUF file")
    return converted(_remembered_sha256(path), lambda _: path, path.name, on_progress)


def converted(
    sha256: str, fetch: Callable[[Path], Path], label: str, on_progress: Progress
) -> Path:
    """The folder that a GGUF whose content has this hash is converted to.

    `fetch` is called with an empty folder when the file is needed, and returns where it is; what it
    writes into the folder is deleted after the conversion. `label` is how the file is called.
    """
    root = cache_dir() / "gguf"
    folder = root / f"{sha256[:32]}-v{VERSION}"
    if not is_intact(folder):
        _build_once(folder, sha256, fetch, label, on_progress)
    _warn_of_splitting(folder, label)
    return folder


def is_converted(where: str) -> bool:
    """Whether this is a folder that a GGUF file was converted to."""
    return Path(where).parent == cache_dir() / "gguf"


def is_intact(folder: Path) -> bool:
    """Whether a converted folder is complete and as it was written.

    Files are hashed only when their time of change is not the recorded one.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return all(_unchanged(folder / name, *entry) for name, entry in manifest.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered_sha256(path: Path) -> str:
    """Hash of a file's content, read once for as long as its size and time of change stay.

    Each file has a note in the cache. Anybody may write it at any time: half of one is no JSON.
    """
    path = path.resolve()
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    note = cache_dir() / "gguf" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):
        *known, sha256 = json.loads(note.read_text())
        if known == stamp:
            return str(sha256)
    sha256 = sha256_of(path)
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps([*stamp, sha256]))
    return sha256


def _locked(path: Path, label: str, on_progress: Progress) -> AbstractContextManager[Any]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        on_progress(f"{label}: waiting for another process that converts it")
        return lock.acquire()


def _unchanged(path: Path, size: int, mtime_ns: int, sha256: str) -> bool:
    stat = path.stat()
    return stat.st_size == size and (stat.st_mtime_ns == mtime_ns or sha256_of(path) == sha256)


def _build_once(
    folder: Path, sha256: str, fetch: Callable[[Path], Path], label: str, on_progress: Progress
) -> None:
    root = folder.parent
    for library in ("filelock", "gguf"):
        if find_spec(library) is None:
            raise MissingDependencyError(f"reading {label}", library, "gguf")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{folder.name}.lock", label, on_progress):
            if not is_intact(folder):  # another process may have been faster
                _build(folder, sha256, fetch, label, on_progress)
    except OSError as error:
        raise ModelLoadError(
            f"{label}: cannot be converted in {root}: {error}. Make room there, or set "
            "SAFE_INTEGRATIONS_CACHE to another folder"
        ) from error


def _build(
    folder: Path, sha256: str, fetch: Callable[[Path], Path], label: str, on_progress: Progress
) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):  # we hold the lock: nobody's
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent, ignore_cleanup_errors=True
    ) as work:
        source, target = Path(work, "source"), Path(work, "target")
        source.mkdir()
        on_progress(f"{label}: reading (done once)")
        gguf = fetch(source)
        if sha256_of(gguf) != sha256:
            raise ModelLoadError(f"{label}: the file is damaged; install or download it again")
        _convert(gguf, target, label, on_progress)
        _write_manifest(target)
        if folder.exists():
            on_progress(f"{label}: the converted copy was damaged and is replaced")
            shutil.rmtree(folder)
        os.replace(target, folder)


def _write_manifest(folder: Path) -> None:
    manifest = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        manifest[path.name] = [path.stat().st_size, path.stat().st_mtime_ns, sha256_of(path)]
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _convert(gguf: Path, target: Path, label: str, on_progress: Progress) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with quiet(), _fast_reading(label, on_progress) as read:
        _check_room(sum(int(tensor.n_elements) for tensor in read(gguf).tensors), target, label)
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        try:
            on_progress(f"{label}: converting its tokenizer")
            tokenizer, unknown = read_tokenizer(gguf)
            tokenizer.save_pretrained(target)
            if unknown is not None:
                (target / _UNKNOWN).write_text(unknown)
            on_progress(f"{label}: converting its weights")
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, local_files_only=True
            )
            model.hf_quantizer = None  # it says that such a model cannot be saved
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(target)
        except ModelLoadError:
            raise
        except Exception as error:
            raise ModelLoadError(
                f"{label}: transformers cannot convert this GGUF file: {error}"
            ) from error


def _warn_of_splitting(folder: Path, label: str) -> None:
    if not (folder / _UNKNOWN).is_file():
        return
    kind = (folder / _UNKNOWN).read_text()
    named = f"in a way that we do not know ({kind})" if kind else "in a way that it does not name"
    warnings.warn(
        f"{label}: this file splits text into words {named} (tokenizer.ggml.pre). It is split as "
        "GPT-2 does, so some token ids may differ from those that the model was trained with; the "
        "model's safetensors come with a tokenizer of their own",
        UnknownSplittingWarning,
        stacklevel=3,
    )


def _check_room(numbers: int, target: Path, label: str) -> None:
    """Says what a model of so many weights will take, and refuses what the disk has no room for."""
    size, free = 4 * numbers, shutil.disk_usage(target.parent).free
    takes = f"{label}: converted to float32 it takes {size / 1e9:.1f} GB in {cache_dir()}"
    if size > free:
        raise ModelLoadError(
            f"{takes}, which has {free / 1e9:.1f} GB of room: make room there, set "
            "SAFE_INTEGRATIONS_CACHE to another folder, or load the model's safetensors instead"
        )
    if size > LARGE:
        memory = "and as much memory when it is loaded; the model's safetensors may take less"
        warnings.warn(f"{takes}, {memory}", LargeModelWarning, stacklevel=2)


@contextmanager
def _fast_reading(label: str, on_progress: Progress) -> Iterator[Callable[[Path], Any]]:
    """Makes transformers parse a GGUF file once instead of four times.

    Yields a function that reads a file's table of contents, and raises a `ModelLoadError` where the
    file is not whole. Only pure functions are swapped, for versions of them that remember; so a
    thread that meets them by chance gets right answers too.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            import numpy as np

            self._data = mapped.view(np.ndarray)  # slicing a np.memmap costs several times more

    remembered = lru_cache(Reader)

    def reader(path: Any, *args: Any) -> Any:
        return remembered(os.path.realpath(path), *args)

    def read(path: Path) -> Any:
        on_progress(f"{label}: reading its table of contents")
        try:
            return reader(path)
        except Exception as error:
            with path.open("rb") as file:
                magic = file.read(4)
            if magic != b"GGUF":
                problem = f"this is not a GGUF file (it starts with {magic!r})"
            else:
                problem = (
                    f"the file is truncated or damaged: it is {path.stat().st_size} bytes long, "
                    "and its own table of contents does not fit that; download it again"
                )
            raise ModelLoadError(f"{label}: {problem}") from error

    with _patching:
        saved = gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader = reader
        gguf.get_tensor_name_map = lru_cache(gguf.get_tensor_name_map)
        try:
            yield read
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = saved
            remembered.cache_clear()  # unmaps the files
