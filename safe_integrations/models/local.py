"""Which library of this process reads a model, and its tokenizer without the model."""

from __future__ import annotations

from safe_integrations.models.llama_cpp.library import is_installed
from safe_integrations.models.locate import is_gguf
from safe_integrations.models.member import TableOf
from safe_integrations.models.spec import ModelSpec, Progress, is_url
from safe_integrations.models.tokenizer import Tokenizer


def is_for_llama_cpp(spec: ModelSpec) -> bool:
    """Whether llama.cpp reads a model, not transformers."""
    if spec.backend != "auto" or is_url(spec.source):
        return spec.backend == "llama.cpp"
    return is_gguf(spec) and not spec.of_transformers() and is_installed()


def tokenizer_of(spec: ModelSpec, tell: Progress) -> tuple[Tokenizer, TableOf]:
    """The tokenizer of a model that is not computed here, and its tokens as bytes.

    Raises:
        ModelError: It cannot be found, read or used.
    """
    if is_for_llama_cpp(spec):
        from safe_integrations.models.llama_cpp import load as llama_cpp

        return llama_cpp.tokenizer_of(spec, tell)
    from safe_integrations.models.transformers import load as transformers

    return transformers.tokenizer_of(spec, tell)
