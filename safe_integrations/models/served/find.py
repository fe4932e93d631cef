"""What a server is, and what it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from safe_integrations.errors import InvalidArgumentError, ServerError
from safe_integrations.models.served.client import Client
from safe_integrations.models.served.dialect import UNREADABLE, Dialect
from safe_integrations.models.served.llama_server import LlamaServer
from safe_integrations.models.served.sglang import Sglang
from safe_integrations.models.served.vllm import Vllm


@dataclass(frozen=True)
class Found:
    """A model on a server.

    Attributes:
        model: How the server calls it.
        kind: What the server is called.
        window: Tokens that a prompt may have; None where it does not say.
        size: Tokens of its vocabulary; None where it does not say.
        loaded: What it was loaded from there: a hub id, a folder or a file.
        speak: How it is asked, for so many ids per row.
    """

    model: str
    kind: str
    window: int | None
    size: int | None
    loaded: str | None
    speak: Callable[[int], Dialect]


def find(client: Client, model: str | None) -> Found:
    """Finds a model on a server; the only one where none is named.

    What a vLLM does not say of an adapter it says of the model that this belongs to.

    Raises:
        InvalidArgumentError: It serves no such model, or several.
        ServerError: It cannot be asked, or is none that is known here.
    """
    answer = client.get(f"{client.url}/models")
    try:
        entries = {str(entry["id"]): entry for entry in answer["data"]}
        names = {str(n): entry for entry in entries.values() for n in entry.get("aliases") or ()}
        kinds = {name: str(entry.get("owned_by")) for name, entry in entries.items()}
    except UNREADABLE as error:
        raise _unknown(client, f"its list of models cannot be read ({error!r})") from error
    served = client.blank(", ".join(entries))
    if not entries:
        raise _unknown(client, "it serves no model")
    if model is None and len(entries) > 1:
        raise InvalidArgumentError("model", None, f"{client.url} serves several: {served}")
    entry = entries[next(iter(entries))] if model is None else {**names, **entries}.get(model)
    if entry is None:
        raise InvalidArgumentError("model", model, f"{client.url} serves {served}: name one")
    kind = kinds[str(entry["id"])]
    reader = _READERS.get(kind)
    if reader is None:
        raise _unknown(client, f"it is {kind!r}, none that is known here")
    try:
        base = entries.get(str(entry.get("parent")), {})
        entry = {**base, **{name: told for name, told in entry.items() if told is not None}}
        return reader(client, entry)
    except UNREADABLE as error:
        raise _unknown(client, f"it does not say what it is ({error!r})") from error


def _vllm(client: Client, entry: Mapping[str, Any]) -> Found:
    model = str(entry["id"])
    return Found(
        model,
        Vllm.kind,
        int(entry["max_model_len"]) if entry.get("max_model_len") else None,
        None,
        _text(entry.get("root")),
        lambda top: Vllm(client.root, model, top),
    )


def _llama_server(client: Client, entry: Mapping[str, Any]) -> Found:
    props = client.get(f"{client.root}/props")
    size, slots = int(entry["meta"]["n_vocab"]), int(props["total_slots"])
    if slots != 1:
        # each would have to read the whole text, and where slots are named it mixes answers up
        problem = f"{client.url} keeps {slots} texts at a time, and a check would read all anew"
        raise client.error(problem, "start it with --parallel 1: it still answers many, in turn")
    return Found(
        str(entry["id"]),
        LlamaServer.kind,
        int(props["default_generation_settings"]["n_ctx"]),
        size,
        _text(props.get("model_path")),
        lambda top: LlamaServer(client.root, size, top),
    )


def _sglang(client: Client, entry: Mapping[str, Any]) -> Found:
    info = client.get(f"{client.root}/server_info")
    return Found(
        str(entry["id"]),
        Sglang.kind,
        int(info["max_req_input_len"]),
        None,
        _text(info.get("tokenizer_path") or info.get("model_path")),
        lambda top: Sglang(client.root, top),
    )


def _text(told: object) -> str | None:
    return str(told) if told else None


_READERS: Final = {"vllm": _vllm, "llamacpp": _llama_server, "sglang": _sglang}
"""By what a server says that it is."""


def _unknown(client: Client, problem: str) -> ServerError:
    remedy = "use a vLLM, a llama-server or an SGLang (docs/serving.md)"
    return client.error(f"{client.url}: {problem}", remedy)
