"""Finding a model: a hub id, a folder, a GGUF file, or a name of the default pair."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from safe_integrations.errors import ModelLoadError, ModelNotFoundError
from safe_integrations.models.embedded import EMBEDDED, embedded_file, embedded_folder
from safe_integrations.models.quiet import quiet_hub
from safe_integrations.models.spec import ModelSpec, Progress, on_disk
from safe_integrations.models.transformers.gguf import converted_file

_HUB_TIMEOUT: Final = 5.0
_HUB_ID: Final = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_ACCESS: Final = ("cache_dir", "code_revision")
"""Of `load_kwargs`, what the tokenizer and the config are read with, too."""


def locate(spec: ModelSpec, tell: Progress) -> tuple[str, dict[str, Any]]:
    """Where a model is, a folder or hub id, and what every `from_pretrained` takes to read it.

    Raises:
        ModelNotFoundError: There is nothing at `spec.source`, or the hub cannot be reached.
        ModelLoadError: A GGUF file cannot be converted.
    """
    options = {key: value for key, value in spec.load_kwargs.items() if key in _ACCESS}
    options["trust_remote_code"] = spec.trust_remote_code
    folder = _local_folder(spec, tell)
    if folder is None:
        options |= _hub_options(spec)
        if spec.gguf_file is not None:
            folder = converted_file(_download(spec, spec.gguf_file, options, tell), tell)
    if folder is None:
        return spec.source, options
    return str(folder), options | {"local_files_only": True}


def is_gguf(spec: ModelSpec) -> bool:
    """Whether a GGUF file is asked for; whether there is one is found out by `gguf_of`."""
    path = on_disk(spec.source)
    if spec.gguf_file is not None or (path and path.is_file()):
        return True
    return path is None and (spec.source in EMBEDDED or spec.source.endswith(".gguf"))


def gguf_of(spec: ModelSpec, tell: Progress) -> Path:
    """The GGUF file that a spec asks for, downloaded first if need be; the first of several.

    Raises:
        ModelNotFoundError: There is none, or the hub cannot be reached.
        ModelLoadError: It cannot be fetched.
    """
    path = on_disk(spec.source)
    if path is None and spec.source in EMBEDDED:
        return embedded_file(spec.source, tell)
    if path is None and spec.gguf_file is not None and _HUB_ID.fullmatch(spec.source):
        options = _hub_options(spec)
        return [_download(spec, file, options, tell) for file in parts_of(spec.gguf_file)][0]
    if path and path.is_dir():
        path = path / (spec.gguf_file or "")
    parts = [Path(part) for part in parts_of(str(path or spec.source))]
    for part in parts:
        if not part.is_file():
            raise ModelNotFoundError(f"{part}: there is no such GGUF file")
    return parts[0]


def parts_of(file: str) -> list[str]:
    """The names of all parts of a GGUF file, where its name says that it is the first of some."""
    split = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", file)
    if split is None:
        return [file]
    name, count = split.groups()
    return [f"{name}-{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1)]


def folder_of(where: str, revision: str | None = None, cache_dir: Any = None) -> Path | None:
    """The folder with a model's files: a folder itself, or what the hub's local cache has."""
    from huggingface_hub import try_to_load_from_cache

    if Path(where).is_dir():
        return Path(where)
    cached = try_to_load_from_cache(where, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _local_folder(spec: ModelSpec, tell: Progress) -> Path | None:
    """The folder of a model on this machine, converted first if need be; None: ask the hub."""
    path = on_disk(spec.source)
    if path and path.is_dir():
        if spec.gguf_file is not None:
            return converted_file(path / spec.gguf_file, tell)
        if not (path / "config.json").is_file():
            found = sorted(p.name for p in path.glob("*.gguf"))
            hint = f"; set gguf_file to one of {', '.join(found)}" if found else ""
            raise ModelNotFoundError(f"{spec.source}: the folder has no config.json{hint}")
        return path
    if path:
        return converted_file(path, tell)
    if spec.source in EMBEDDED:
        return embedded_folder(spec.source, tell)
    if spec.source.endswith(".gguf") or not _HUB_ID.fullmatch(spec.source):
        raise ModelNotFoundError(f"{spec.source}: there is no such file or folder")
    return None


def _hub_options(spec: ModelSpec) -> dict[str, Any]:
    """Asks the hub once, without retries, so that later calls need not find out that it is away."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    file = spec.gguf_file or "config.json"
    options: dict[str, Any] = {"revision": spec.revision} if spec.revision else {}
    try:
        url = hf_hub_url(spec.source, file, revision=spec.revision)
        get_hf_file_metadata(url, timeout=_HUB_TIMEOUT)
        return options
    except EntryNotFoundError as error:
        raise ModelNotFoundError(f"{spec.source}: the hub's repository has no {file}") from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise ModelNotFoundError(
                f"{spec.source}: no such folder, embedded model ({', '.join(EMBEDDED)}) or hub "
                "model that you may read; check the name, or log in with `hf auth login`"
            ) from error
        reason: Exception = error
    except Exception as error:  # offline mode, no route, a proxy, a timeout, ...
        reason = error
    cache = spec.load_kwargs.get("cache_dir")
    known = try_to_load_from_cache(spec.source, file, cache_dir=cache, revision=spec.revision)
    if isinstance(known, str):
        return options | {"local_files_only": True}
    raise ModelNotFoundError(
        f"{spec.source}: no such folder or embedded model ({', '.join(EMBEDDED)}), not in the "
        f"hub's local cache, and the hub cannot be asked ({type(reason).__name__}); check the name "
        "and the connection"
    ) from reason


def _download(spec: ModelSpec, file: str, options: dict[str, Any], tell: Progress) -> Path:
    from huggingface_hub import hf_hub_download

    tell(f"{spec.source}: fetching {file}")
    taken = ("cache_dir", "revision", "local_files_only")
    given = {key: value for key, value in options.items() if key in taken}
    try:
        with quiet_hub():
            return Path(hf_hub_download(spec.source, file, **given))
    except Exception as error:
        raise ModelLoadError(f"{spec.source}: {file} cannot be fetched: {error}") from error
