"""Which backend computes a model, which library does it, and what is said where it cannot."""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf import TokenType

from safe_integrations.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    ModelLoadError,
    ModelNotFoundError,
    UnknownSplittingWarning,
    UnsupportedModelError,
)
from safe_integrations.models import load as loading
from safe_integrations.models import local, locate
from safe_integrations.models.inspection import inspect_model
from safe_integrations.models.llama_cpp import library as libraries
from safe_integrations.models.llama_cpp import load
from safe_integrations.models.llama_cpp import threads as waiting
from safe_integrations.models.llama_cpp.library import VARIABLE, Llama, is_installed, library
from safe_integrations.models.llama_cpp.member import LlamaMember
from safe_integrations.models.llama_cpp.threads import patience, threads
from safe_integrations.models.load import load_member, load_members, peek, unload_models
from safe_integrations.models.spec import ModelSpec


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    tokens, merges = gguf_files.greedy("The quick brown fox")
    return gguf_files.byte_level(
        tmp_path / "toy.gguf", tokens, merges, added={"<end>": TokenType.CONTROL}, pre="gpt-2",
        weights=True, context_length=512,
    )  # fmt: skip


def silent(_: str) -> None: ...


def load_toy(path: Path, **options: Any) -> LlamaMember:
    return load.load(ModelSpec(source=str(path), **options), silent)


# Which backend


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "is_installed", lambda: True)


def backend_of(**options: Any) -> str:
    return loading.backend_of(ModelSpec(**options)).__name__.split(".")[-2]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({"source": "smollm2-135m"}, "llama_cpp"),
        ({"source": "weights.gguf"}, "llama_cpp"),
        ({"source": "org/model", "gguf_file": "model.Q4_K_M.gguf"}, "llama_cpp"),
        ({"source": "org/model"}, "transformers"),
        ({"source": "smollm2-135m", "backend": "transformers"}, "transformers"),
        ({"source": "smollm2-135m", "device": "cpu"}, "llama_cpp"),
        ({"source": "smollm2-135m", "device": "cuda"}, "transformers"),
        ({"source": "smollm2-135m", "dtype": "bfloat16"}, "transformers"),
        ({"source": "smollm2-135m", "pack": False}, "transformers"),
        ({"source": "smollm2-135m", "load_kwargs": {"a": 1}}, "transformers"),
        ({"source": "smollm2-135m", "context_window": 512, "gpu_layers": 3}, "llama_cpp"),
    ],
)
def test_gguf_files_go_to_llama_cpp(options: dict[str, Any], backend: str) -> None:
    """Unless something is asked for that only transformers knows."""
    assert backend_of(**options) == backend


def test_without_the_library_all_goes_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "is_installed", lambda: False)
    assert backend_of(source="smollm2-135m") == "transformers"
    assert backend_of(source="smollm2-135m", backend="llama.cpp") == "llama_cpp"


def test_what_llama_cpp_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match="backend='llama.cpp': .* dtype, pack, device"):
        ModelSpec(source="a.gguf", backend="llama.cpp", dtype="float16", pack=False, device="cuda")


def test_llama_cpp_computes_gguf_files_only() -> None:
    with pytest.raises(InvalidArgumentError, match="org/model is no GGUF file: name one, or leave"):
        load_member(ModelSpec(source="org/model", backend="llama.cpp"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for options in ({"source": "no.gguf"}, {"source": str(tmp_path), "gguf_file": "no.gguf"}):
        with pytest.raises(ModelNotFoundError, match=r"no\.gguf: there is no such GGUF file"):
            load_member(ModelSpec(**options, backend="llama.cpp"))


def test_all_parts_of_a_file_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[str] = []

    def download(spec: ModelSpec, file: str, *_: Any) -> Path:
        fetched.append(file)
        return tmp_path / file

    monkeypatch.setattr(locate, "_hub_options", lambda _: {})
    monkeypatch.setattr(locate, "_download", download)
    spec = ModelSpec(source="org/model", gguf_file="q4/m-00001-of-00003.gguf")
    assert locate.gguf_of(spec, silent) == tmp_path / fetched[0]
    assert fetched == [f"q4/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def test_a_file_is_fetched_without_transformers(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    def download(source: str, file: str) -> str:
        assert (source, file) == ("org/model", "m.gguf")
        return str(toy)

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(locate, "_hub_options", lambda _: {})
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert locate.gguf_of(ModelSpec(source="org/model", gguf_file="m.gguf"), silent) == toy


# The embedded models


def test_a_file_in_parts_is_put_together_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safe_integrations.models import embedded

    made: list[Path] = []

    def fetch(folder: Path) -> Path:
        made.append(folder / "whole")
        made[-1].write_bytes(b"GGUF")
        return made[-1]

    monkeypatch.setenv("SAFE_INTEGRATIONS_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_package", lambda _: tmp_path)
    monkeypatch.setitem(embedded._MODELS, "gemma3-270m", ("whole", "ab" * 32, fetch))
    first = embedded.embedded_file("gemma3-270m", silent)
    assert first.read_bytes() == b"GGUF"
    assert embedded.embedded_file("gemma3-270m", silent) == first
    assert len(made) == 1
    assert list((tmp_path / "gguf").iterdir()) == [first], "nothing else is left"


def test_a_whole_file_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on a disk that cannot be written to."""
    from safe_integrations.models import embedded

    packed = tmp_path / embedded._SMOLLM2
    packed.touch()
    monkeypatch.setenv("SAFE_INTEGRATIONS_CACHE", str(packed / "no folder"))
    monkeypatch.setattr(embedded, "_package", lambda _: tmp_path)
    assert embedded.embedded_file("smollm2-135m", silent) == packed


# The library


@pytest.fixture
def afresh() -> Iterator[None]:
    """A process that has not looked for the library yet."""
    libraries._library.cache_clear()
    yield
    libraries._library.cache_clear()


@pytest.mark.usefixtures("afresh")
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not is_installed()
    with pytest.raises(MissingDependencyError, match=r'pip install "safe-integrations\[llama-cpp'):
        load_toy(toy)


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("name", ["c", None], ids=["another library", "no library"])
def test_a_file_that_is_no_llama_cpp(
    name: str | None, monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    """It is told by name, with what mends it."""
    path = str(toy) if name is None else str(ctypes.util.find_library(name))
    monkeypatch.setenv(VARIABLE, path)
    why = "cannot be loaded" if name is None else "has no llama_backend_init"
    with pytest.raises(ModelLoadError, match=rf"{path}.*{why}(.|\n)*pip install(.|\n)*unset it"):
        load_toy(toy)


def test_packages_are_searched_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the environment says, llama-cpp-python, xllamacpp."""
    places = {"llama_cpp": "lib/libllama.so", "xllamacpp": "xllamacpp.abi3.so"}
    for package, file in places.items():
        (tmp_path / package / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / package / file).touch()

    def spec(package: str) -> Any:
        folder = tmp_path / package
        there = folder.is_dir()
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if there else None

    monkeypatch.setattr(libraries, "find_spec", spec)
    monkeypatch.setenv(VARIABLE, "/opt/libllama.so")
    assert libraries._found() == Path("/opt/libllama.so")
    monkeypatch.delenv(VARIABLE)
    for package, file in places.items():
        found = tmp_path / package / file
        assert libraries._found() == found
        found.unlink()
    (tmp_path / "xllamacpp/xllamacpp.pyd").touch()
    assert not is_installed(), "on Windows, it shows nobody the library"


@pytest.mark.usefixtures("afresh")
def test_threads_that_ask_at_once_get_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would not know of each other's listeners, and lose what the library says."""
    together = threading.Barrier(3, timeout=0.5)

    def found() -> Path:
        with suppress(threading.BrokenBarrierError):  # nobody else comes in
            together.wait()
        return path

    path = Path(str(libraries._found()))
    monkeypatch.setattr(libraries, "_found", found)
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: id(library()), range(3)))) == 1


def test_a_library_with_other_parameters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = libraries._number
    for place in (4, libraries._GPU_LAYERS):
        monkeypatch.setattr(
            libraries, "_number", lambda p, at, off=place: real(p, at) + (at == off)
        )
        with pytest.raises(ModelLoadError, match="is a llama.cpp with other parameters"):
            Llama(library().path)


def test_a_library_that_cannot_share_cells_is_refused(
    monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    monkeypatch.setattr(library(), "llama_n_ctx_seq", lambda _: 64)
    with pytest.raises(ModelLoadError, match="its sequences cannot share cells"):
        load_toy(toy)


def test_a_library_that_does_not_cut_back_is_refused(
    monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    monkeypatch.setattr(library(), "llama_memory_seq_rm", lambda *_: True)
    with pytest.raises(ModelLoadError, match="toy: .*llama.cpp failed with code"):
        load_toy(toy)
    monkeypatch.setattr(library(), "llama_memory_seq_rm", lambda *_: False)
    with pytest.raises(ModelLoadError, match="toy: .*cannot be cut back"):
        load_toy(toy)


@pytest.mark.parametrize("fault", ["the wrong row", "no number"])
def test_a_library_that_answers_wrongly_is_refused(
    fault: str, monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    llama = library()
    right = llama.llama_get_logits_ith
    nothing = np.full(1000, np.nan, np.float32)
    wrong = {
        "the wrong row": lambda context, place: right(context, 0),
        "no number": lambda context, place: nothing.ctypes.data,
    }
    monkeypatch.setattr(llama, "llama_get_logits_ith", wrong[fault])
    with pytest.raises(ModelLoadError, match="computes something else when it reads tokens again"):
        load_toy(toy)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("is_recurrent", "cannot be cut back after a rejected draft"),
        ("is_hybrid", "cannot be cut back after a rejected draft"),
        ("is_diffusion", "does not write from left to right"),
        ("has_encoder", "is no decoder-only model"),
    ],
)
def test_models_that_cannot_take_part_are_refused_by_name(
    kind: str, why: str, monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    monkeypatch.setattr(library(), f"llama_model_{kind}", lambda _: True)
    with pytest.raises(UnsupportedModelError, match=f"toy.*{why}"):
        load_toy(toy)


def test_a_model_of_embeddings_is_refused_by_name(tmp_path: Path) -> None:
    """Nothing in the file tells that it has no rows."""
    path = gguf_files.sentencepiece(
        tmp_path / "embed.gguf", gguf_files.parts_of(" The quick fox"), weights=True, window=16,
        architecture="gemma-embedding",
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="embed.gguf .*it is no language model"):
        load_toy(path)


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("mamba", r"cannot be cut back after a rejected draft \(mamba\)"),
        ("lfm2", r"cannot be cut back after a rejected draft \(lfm2\)"),
        ("t5", "is no decoder-only model"),
        ("jina-bert-v2", "is no decoder-only model"),  # it makes embeddings
    ],
)
def test_looking_tells_of_models_that_cannot_take_part(
    architecture: str, why: str, tmp_path: Path
) -> None:
    tokens, merges = gguf_files.greedy("The quick brown fox")
    path = gguf_files.byte_level(
        tmp_path / "other.gguf", tokens, merges, added={"<end>": TokenType.CONTROL}, pre="gpt-2",
        architecture=architecture, **{"jina-bert-v2.attention.causal": False},
    )  # fmt: skip
    problem = inspect_model(ModelSpec(source=str(path)), silent).problem
    assert problem is not None and re.search(f"other.*{why}", problem)


def test_a_damaged_file_is_told_in_the_words_of_the_library(toy: Path, tmp_path: Path) -> None:
    cut, other = tmp_path / "cut.gguf", tmp_path / "other.gguf"
    cut.write_bytes(toy.read_bytes()[:-200])
    other.write_bytes(toy.read_bytes().replace(b"llama", b"lhama"))
    with pytest.raises(
        ModelLoadError, match=r"cut.gguf cannot be read.*not within the file bounds"
    ):
        load_toy(cut)
    cut.write_bytes(toy.read_bytes()[:-200].replace(b"GGUF", b"GGML"))
    with pytest.raises(ModelLoadError, match=r"cut.gguf cannot be read.*invalid magic .*'GGML'"):
        load_toy(cut)
    with pytest.raises(ModelLoadError, match=r"other.gguf cannot be read.*architecture: 'lhama'"):
        load_toy(other)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, -1),
        ({"gpu_layers": 7}, 7),
        ({"gpu_layers": 0}, 0),
        ({"gpu_layers": 7, "device": "cpu"}, 0),
    ],
)
def test_the_library_is_told_how_many_layers_a_gpu_holds(
    options: dict[str, Any], layers: int, monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    llama, told = library(), list[int]()
    right = llama.llama_model_load_from_file

    def spy(path: bytes, params: libraries._Params) -> Any:
        told.append(libraries._number(params, libraries._GPU_LAYERS))
        return right(path, params)

    monkeypatch.setattr(llama, "llama_model_load_from_file", spy)
    load_toy(toy, **options)
    assert told == [layers]


# Side by side


@pytest.mark.usefixtures("installed")
def test_models_are_in_the_order_they_were_asked_for(toy: Path, tmp_path: Path) -> None:
    unload_models()
    other = tmp_path / "other.gguf"
    other.write_bytes(toy.read_bytes())
    loaded = load_toy(toy, name="loaded")
    one, middle, two, again = load_members([str(toy), loaded, str(other), str(toy)])
    assert [one.name, two.name] == ["toy", "other"]
    assert middle is loaded and again is one


@pytest.mark.usefixtures("installed")
def test_nobody_waits_for_other_models_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a hub is fetched for many minutes."""
    fetched, go_on = threading.Event(), threading.Event()

    def load(spec: ModelSpec, tell: Any) -> Any:
        if spec.source == "bad.gguf":
            raise ModelLoadError("bad")
        go_on.wait(timeout=1)
        fetched.set()

    monkeypatch.setattr(loading, "load_member", load)
    with pytest.raises(ModelLoadError, match="bad"):
        load_members(["good.gguf", "bad.gguf"])
    assert not fetched.is_set()
    go_on.set()


@pytest.mark.usefixtures("installed")
def test_one_thread_at_a_time_tells_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=0.3)
    lines: list[str] = []

    def tell(line: str) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait()
            lines.append("two at once")
        lines.append(line)

    monkeypatch.setattr(loading, "load_member", lambda spec, tell: tell(spec.source))
    load_members(["a.gguf", "b.gguf"], tell)
    assert sorted(lines) == ["a.gguf", "b.gguf"]


# What it is without its weights


def test_a_card_and_a_report_without_weights(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unload_models()
    monkeypatch.setattr(load, "open_model", None)
    spec = ModelSpec(source=str(toy))
    assert peek(spec) == ("toy", 512)
    assert peek(ModelSpec(source=str(toy), context_window=100)).context_window == 100
    report = inspect_model(spec, silent)
    assert (report.problem, report.where, report.context_window) == (None, str(toy), 512)
    assert report.kv_bytes == 1000 * 2 * 8 * 2
    assert report.tokens is not None and report.tokens.size == load_size(toy)


def test_a_report_of_layers_that_differ_and_of_files_in_parts(tmp_path: Path) -> None:
    tokens, merges = gguf_files.greedy("The quick brown fox")
    told = {
        "llama.block_count": 3, "llama.embedding_length": 64, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": [1, 2, 4],
    }  # fmt: skip
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    gguf_files.byte_level(first, tokens, merges, added={"<end>": TokenType.CONTROL}, **told)
    spec = ModelSpec(source=str(first), backend="llama.cpp")
    problem = inspect_model(spec, silent).problem
    assert problem == f"{second}: there is no such GGUF file"
    second.write_bytes(bytes(100))
    with pytest.warns(UnknownSplittingWarning):
        report = inspect_model(spec, silent)
    assert report.kv_bytes == 1000 * (1 + 2 + 4) * (16 + 16) * 2
    assert report.weight_bytes == first.stat().st_size + 100


def load_size(path: Path) -> int:
    return libraries.open_vocabulary(path).size


def test_looking_and_loading_agree(toy: Path) -> None:
    member, spec = load_toy(toy), ModelSpec(source=str(toy))
    report = inspect_model(spec, silent)
    assert report.tokens is not None
    symbols = [table.symbols() for table in (report.tokens, member.tokens)]
    assert list(symbols[0]) == list(symbols[1])
    assert report.context_window == member.context_window
    assert report.teaches == member.teaches


def test_neither_torch_nor_transformers_is_needed(toy: Path) -> None:
    """Who has a GGUF file installs neither; and importing them takes seconds."""
    program = f"""
import sys
class Nowhere:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {{"torch", "transformers", "tokenizers", "huggingface_hub"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
from safe_integrations import GenerationConfig, load_engine
engine = load_engine({str(toy)!r}, [])
result = engine.complete("The fox", GenerationConfig(max_tokens=3))
import json
print(json.dumps([result.statistics.tokens, engine.drafter.name]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3, "toy"]


# Threads


def test_threads_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert 1 <= threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("share", "expected"),
    [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("900000 100000", 8)],
)
def test_threads_are_no_more_than_a_container_may_keep_busy(
    share: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(f"{share}\n")
    monkeypatch.setattr(waiting, "_SHARE", tmp_path / "cpu.max")
    monkeypatch.setattr(waiting, "_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads() == expected


def test_waiting_threads_spin_briefly_unless_somebody_has_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with patience():
        assert int(os.environ["GOMP_SPINCOUNT"]) > 0
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with patience():
        assert "GOMP_SPINCOUNT" not in os.environ
