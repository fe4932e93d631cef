"""From a `ModelSpec` to a member: names, identities, options and processes, on toys."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from contextlib import ExitStack
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import toy_model

from safe_integrations.engine.events import Verified
from safe_integrations.errors import InvalidArgumentError, ModelError, UnsupportedModelError
from safe_integrations.models.inspection import inspect_model
from safe_integrations.models.load import load_member, peek, unload_models
from safe_integrations.models.quiet import quiet
from safe_integrations.models.spec import LoadedModel, ModelSpec, key_of, name_of
from safe_integrations.models.transformers.load import load_model
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

SIZE = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A toy on disk, as `save_pretrained` leaves it."""
    model, tokenizer, _ = toy_model("toy", SIZE)
    path = tmp_path / "toy"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# Names and identities


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (".", "here"),
        ("./", "here"),
        ("..", "above"),
        ("sub/..", "here"),
        ("/", "/"),
        ("org/model", "model"),
        ("smollm2-135m", "smollm2-135m"),
        ("weights/model.gguf", "model"),
    ],
)
def test_every_model_has_a_name(
    source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of `.` was empty, and later blamed on `source`."""
    (tmp_path / "above" / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert name_of(ModelSpec(source=source)) == name


def test_a_model_loaded_from_here_has_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, _ = toy_model("toy", SIZE)
    model.name_or_path = "."
    monkeypatch.chdir(folder)
    assert load_member(LoadedModel.of(model, tokenizer)).name == "toy"


def test_a_given_name_is_not_empty() -> None:
    with pytest.raises(InvalidArgumentError, match="name"):
        ModelSpec(source="a", name="")


def test_models_of_one_ensemble_have_names_that_differ() -> None:
    """Votes and statistics name models; two of `llama` could not be told apart."""
    members = [ScriptedMember(name, [], follows(b"ok")) for name in ("m", "m", "m#2", "m")]
    engine = SafeEngine(members[0], members[1:])
    names = ["m", "m#2", "m#2#2", "m#3"]
    assert [member.name for member in engine.members] == names
    assert [model.name for model in engine.complete("Go.").statistics.models] == names
    told = [event for event in engine.generate("Go.") if isinstance(event, Verified)]
    votes = [vote.model for event in told for piece in event.pieces for vote in piece.votes]
    assert votes[: len(names)] == names


def test_a_folder_is_one_model_however_it_is_spelled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both spellings were loaded; after `chdir`, `toy` stood for the other folder's model."""
    monkeypatch.chdir(folder.parent)
    first = load_member("toy")
    assert load_member("./toy") is first and load_member(str(folder)) is first
    elsewhere = folder.parent / "elsewhere"
    model, tokenizer, _ = toy_model("toy", SIZE + 8)
    model.save_pretrained(elsewhere / "toy")
    tokenizer.save_pretrained(elsewhere / "toy")
    monkeypatch.chdir(elsewhere)
    assert peek("toy").name == "toy" and load_member("toy") is not first
    assert load_member("toy").tokens.size == SIZE + 8
    unload_models()


# What `from_pretrained` takes


class Quantisation:
    """Stands in for a quantisation config of transformers."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def to_dict(self) -> dict[str, Any]:
        """What such configs offer."""
        return {"quant_method": "toy", "bits": self.bits, "compute": torch.bfloat16}


def test_options_reach_from_pretrained(folder: Path) -> None:
    spec = ModelSpec(source=str(folder), load_kwargs={"attn_implementation": "eager"})
    assert load_model(spec).model.config._attn_implementation == "eager"


def test_specs_with_objects_tell_models_apart_and_can_be_written_down() -> None:
    def spec(bits: int, **more: Any) -> ModelSpec:
        options = {"quantization_config": Quantisation(bits), "max_memory": {0: "1GB"}, **more}
        return ModelSpec(source="a", load_kwargs=options)

    assert key_of(spec(4)) == key_of(spec(4)) != key_of(spec(8))
    assert key_of(spec(4, x=1, y=2)) == key_of(spec(4, y=2, x=1)) != key_of(spec(4, x=1, y=3))
    written = json.loads(spec(4, offload_folder=Path("/tmp")).model_dump_json())
    assert written["load_kwargs"] == {
        "quantization_config": {"quant_method": "toy", "bits": 4, "compute": "torch.bfloat16"},
        "max_memory": {"0": "1GB"},
        "offload_folder": "/tmp",
    }
    assert isinstance(spec(4).load_kwargs["quantization_config"], Quantisation)
    assert ModelSpec(source="a").model_dump(exclude_defaults=True) == {"source": "a"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "ModelSpec's dtype"),
        ({"torch_dtype": "float16"}, "ModelSpec's dtype"),
        ({"device_map": "auto"}, "ModelSpec's device_map"),
        ({"revision": "main"}, "ModelSpec's revision"),
        ({"trust_remote_code": True}, "ModelSpec's trust_remote_code"),
        ({"gguf_file": "a.gguf"}, "ModelSpec's gguf_file"),
        ({"token": "secret"}, "hf auth login"),
        ({"output_loading_info": True}, "leave it out"),
        ({"key": object()}, "object cannot be told apart"),
    ],
)
def test_options_that_cannot_be_passed_on_are_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as error:
        ModelSpec(source="a", load_kwargs=options)
    assert error.value.argument == "load_kwargs"
    assert message.startswith("object") or next(iter(options)) in error.value.remedy


# Looking without loading


REMOTE = {
    "configuration_toy.py": """\
from transformers import LlamaConfig
class ToyConfig(LlamaConfig):
    model_type = "toy-of-ours"
""",
    "modeling_toy.py": """\
from transformers import LlamaForCausalLM
from .configuration_toy import ToyConfig
class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig
""",
}


def test_code_that_comes_with_a_model_is_trusted_by_whoever_looks_at_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_engine` could use such a model; `SafeLLM` and `doctor` said it cannot be read."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    for name, code in REMOTE.items():
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "toy-of-ours"
    config["auto_map"] = {
        "AutoConfig": "configuration_toy.ToyConfig",
        "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    trusted = ModelSpec(source=str(folder), trust_remote_code=True)
    assert peek(trusted).context_window == 8192
    assert inspect_model(trusted, print).problem is None
    assert load_model(trusted).model.config.model_type == "toy-of-ours"

    wary = ModelSpec(source=str(folder))
    for look in (peek, load_member):
        with pytest.raises(UnsupportedModelError, match="trust_remote_code=True"):
            look(wary)
    assert "trust_remote_code=True" in (inspect_model(wary, print).problem or "")


def test_looking_and_loading_agree_on_named_templates(folder: Path) -> None:
    """`doctor` called a model usable that could not be loaded."""
    tokenizer = toy_model("toy", SIZE).tokenizer
    tokenizer.chat_template = {"rag": "{{ messages[0].content }}!", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    spec = ModelSpec(source=str(folder))
    with pytest.raises(UnsupportedModelError, match="set chat_template to one of"):
        load_member(spec)
    assert "set chat_template to one of" in (inspect_model(spec, print).problem or "")
    chosen = ModelSpec(source=str(folder), chat_template="rag")
    assert inspect_model(chosen, print).problem is None and peek(chosen).context_window
    assert load_model(chosen).tokenizer.chat_template == "{{ messages[0].content }}!"


def test_silence_ends_with_the_last_load() -> None:
    """Two loads overlapped: the second took the silence of the first for what to restore."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    def state() -> tuple[int, bool, bool]:
        bars = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
        return logging.get_verbosity(), *bars

    before = state()
    silent = (logging.ERROR, False, True)
    assert before != silent
    with ExitStack() as second:
        with quiet():
            assert state() == silent
            second.enter_context(quiet())
        assert state() == silent
    assert state() == before


# Processes


def test_a_loaded_model_is_not_pickled() -> None:
    """A pool of processes ended in an AttributeError about something inside."""
    member = load_member(toy_model("toy", SIZE))
    for dumps in (
        pickle.dumps,
        ForkingPickler.dumps,
    ):  # the second is what a pool of processes does
        with pytest.raises(ModelError, match="toy: .*name it, and each process will load it"):
            dumps(member)


def _answer(member: Any, folder: str, answers: Any) -> None:
    """Uses a model of the parent, and loads one, in a forked process."""
    for use in (
        lambda: member.start([1, 2, 3]).score([], 0),
        lambda: SafeEngine(member).complete("Go."),
        lambda: load_member(folder),
        lambda: load_member(toy_model("new", SIZE)),
    ):
        try:
            use()
            answers.put("it worked")
        except ModelError as error:
            answers.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_process_is_told_to_load_its_own(folder: Path) -> None:
    """It waited for ever for torch's threads, which a fork does not copy."""
    member = load_member(str(folder))
    ids = torch.arange(300) % SIZE
    member.start(ids.tolist()).score([], 0)  # starts the threads
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=_answer, args=(member, str(folder), answers))
    child.start()
    try:
        told = [answers.get(timeout=60) for _ in range(4)]
    finally:
        child.kill()
        child.join()
    assert all("load models in each process" in message for message in told), told
    assert member.start([1, 2, 3]).score([], 0), "the parent goes on"
    unload_models()
