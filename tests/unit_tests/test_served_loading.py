"""From the URL of a server to a member: what is asked, what is refused, and what it is told."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from faulty_server import (
    Fault,
    FaultyServer,
    Kind,
    Model,
    at_random,
    changes,
    closes,
    cuts,
    is_silent,
    refuses,
    says,
    serving,
)
from pydantic import SecretStr
from toy_models import SHAPE, toy_tokenizer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from safe_integrations.config import GenerationConfig
from safe_integrations.errors import (
    InvalidArgumentError,
    ModelError,
    ModelLoadError,
    ModelNotFoundError,
)
from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.messages import as_messages
from safe_integrations.models.inspection import inspect_model
from safe_integrations.models.load import load_member, peek, unload_models
from safe_integrations.models.report import ModelReport
from safe_integrations.models.served import client as client_module
from safe_integrations.models.served.load import TOP
from safe_integrations.models.spec import ModelSpec, key_of
from safe_integrations.report.payloads import dump, reported
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine

pytestmark = pytest.mark.timeout(120)

SIZE = 400
KEY = "sk-sesame-open-this-0123456789"
ENV = "SAFE_INTEGRATIONS_API_KEY"
KINDS: tuple[Kind, ...] = get_args(Kind)
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def write(tokenizer: PreTrainedTokenizerFast, path: Path) -> Path:
    tokenizer.save_pretrained(path)
    LlamaConfig(vocab_size=SIZE, **SHAPE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return toy_tokenizer(SIZE, TEMPLATE)


@pytest.fixture(scope="module")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tokenizer, tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Model:
    def spell(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return at_random(SIZE, spell=spell, loaded=str(folder))


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.001)
    monkeypatch.delenv(ENV, raising=False)
    unload_models()
    yield
    unload_models()


@pytest.fixture
def vllm(model: Model) -> Iterator[FaultyServer]:
    with serving("vllm", model) as server:
        yield server


def load(server: FaultyServer, **options: Any) -> Any:
    return load_member(ModelSpec(source=server.url, **{"request_timeout": 20, **options}))


def report(source: str | ModelSpec) -> ModelReport:
    spec = ModelSpec(source=source, max_retries=0) if isinstance(source, str) else source
    return inspect_model(spec, lambda _: None)


# What is known afterwards


@pytest.mark.parametrize("kind", KINDS)
def test_a_url_is_all_that_it_takes(kind: Kind, model: Model) -> None:
    """What writes is what the server would write alone."""
    with serving(kind, model) as server:
        member = load(server)
        assert member.name == f"127.0.0.1:{server.port}"
        assert member.context_window == model.window - 1
        assert (member.limits.top, member.limits.remote) == (TOP, True)
        assert member.limits.ids == (None if kind == "sglang" else 128)
        assert member.tokens.size == SIZE
        prompt = member.render(as_messages("Go."))
        ids, _ = member.start(prompt).draft([], 9).result()
        result = SafeEngine(member).complete("Go.", GenerationConfig(max_tokens=9))
        assert [p.written for p in result.pieces] == [member.tokens.symbol(i) for i in ids]
        assert peek(server.url).context_window == model.window - 1
        known = report(server.url)
        assert known.problem is None
        assert model.name in str(known.where)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_an_address_may_be_written_in_several_ways(path: str, vllm: FaultyServer) -> None:
    url = vllm.url.removesuffix("/v1") + path
    assert load_member(ModelSpec(source=url)).context_window == 4095


def test_options_of_a_server(vllm: FaultyServer) -> None:
    member = load(vllm, name="mine", context_window=100, top_logprobs=7)
    assert (member.name, member.context_window, member.limits.top) == ("mine", 100, 7)
    member = load(vllm, context_window=100_000)
    assert member.context_window == 4095
    assert load(vllm, model="toy").name == "toy"


def test_a_model_is_loaded_once(vllm: FaultyServer) -> None:
    member = load(vllm)
    asked = len(vllm.requests)
    assert load(vllm) is member
    assert len(vllm.requests) == asked


def test_a_model_that_could_not_be_loaded_is_tried_again(vllm: FaultyServer) -> None:
    vllm.play(refuses(503), path="/v1/models")
    with pytest.raises(ModelLoadError, match="busy or still loading"):
        load(vllm, max_retries=0)
    assert load(vllm, max_retries=0).name


# Which model


def test_of_several_models_one_must_be_named(model: Model, folder: Path) -> None:
    other = at_random(SIZE, spell=model.spell, loaded=str(folder), name="other", window=50)
    with serving("vllm", model, other) as server:
        with pytest.raises(
            InvalidArgumentError, match=r"^model=None: .*serves several: toy, other"
        ):
            load(server)
        with pytest.raises(InvalidArgumentError, match="^model='third': .*serves toy, other: name"):
            load(server, model="third")
        assert load(server, model="other").context_window == 49
        assert {seen.body["model"] for seen in server.asked} == {"other"}


def test_an_adapter_of_a_vllm_has_the_window_of_its_base(vllm: FaultyServer, model: Model) -> None:
    """Of adapters vLLM tells no `max_model_len`: an answer would run into an error at its end."""
    loaded = model.loaded

    def adapted(data: Any) -> None:
        adapter = {"id": "lora", "owned_by": "vllm", "root": loaded, "max_model_len": None}
        data["data"].append({**adapter, "parent": model.name})

    vllm.always(changes(adapted), "/v1/models")
    assert peek(ModelSpec(source=vllm.url, model="lora")).context_window == model.window - 1


def test_a_llama_server_knows_names_that_stand_for_another(model: Model) -> None:
    with serving("llamacpp", model) as server:
        server.always(changes(_also_called), "/v1/models")
        assert load(server, model="alias").dialect.kind == "llama-server"


def _also_called(data: Any) -> None:
    data["data"][0]["aliases"] = ["alias"]


# Which tokenizer


def test_without_a_tokenizer_nothing_goes(vllm: FaultyServer, model: Model, folder: Path) -> None:
    for nowhere in ("/models/nowhere", "org/nowhere"):
        model.loaded = nowhere
        with pytest.raises(ModelNotFoundError, match=f"has loaded {nowhere}, .*: set tokenizer"):
            load(vllm)
    model.loaded = None
    with pytest.raises(InvalidArgumentError, match=r"^tokenizer=None: name the hub id or folder"):
        load(vllm)
    assert load(vllm, tokenizer=str(folder)).tokens.size == SIZE
    with pytest.raises(ModelNotFoundError, match="elsewhere"):
        load(vllm, tokenizer="/models/elsewhere")


@pytest.mark.parametrize("kind", KINDS)
def test_another_tokenizer_is_noticed(kind: Kind, model: Model, tmp_path: Path) -> None:
    other = write(toy_tokenizer(SIZE - 1, TEMPLATE, added=["world"]), tmp_path / "other")
    with serving(kind, model) as server:
        with pytest.raises(ModelLoadError, match="splits text otherwise .* set tokenizer"):
            load(server, tokenizer=str(other))
        assert server.asked == [], "before it is asked for anything that takes time"


def test_a_server_that_does_not_tokenise_is_trusted(vllm: FaultyServer) -> None:
    vllm.always(refuses(404), "/tokenize")
    told: list[str] = []
    load_member(ModelSpec(source=vllm.url), told.append)
    assert any("goes unchecked" in line for line in told)


def test_a_tokenizer_of_another_size_is_noticed(model: Model) -> None:
    wide = at_random(SIZE + 1, spell=model.spell, loaded=model.loaded)
    with serving("llamacpp", wide) as server:
        with pytest.raises(ModelLoadError, match="401 tokens, and the tokenizer has 400: set tok"):
            load(server)


def test_a_tokenizer_is_no_server() -> None:
    with pytest.raises(InvalidArgumentError, match="^tokenizer='http.*: name a hub id, a folder"):
        ModelSpec(source="http://localhost:8000/v1", tokenizer="http://localhost:8000/v1")


# Rows


def test_a_server_may_tell_few_ids(vllm: FaultyServer) -> None:
    vllm.cap = 20
    told: list[str] = []
    member: Any = load_member(ModelSpec(source=vllm.url), told.append)
    assert member.limits.top == 20
    assert any("--max-logprobs 64" in line for line in told)
    assert [seen.body["logprobs"] for seen in vllm.asked] == [64, 20, 1]  # at last, one by name


@pytest.mark.parametrize(("cap", "wanted"), [(20, 64), (0, None), (0, 1)])
def test_what_cannot_be_told_is_refused(vllm: FaultyServer, cap: int, wanted: int | None) -> None:
    vllm.cap = cap
    with pytest.raises(InvalidArgumentError, match=f"^top_logprobs=.* tells {cap} at most; vLLM"):
        load(vllm, top_logprobs=wanted)


@pytest.mark.parametrize("value", [0.5, 30.0, 1e6, float("nan"), float("inf")])
def test_logits_are_no_log_probabilities(vllm: FaultyServer, value: float) -> None:
    def change(data: Any) -> None:
        for choice in data["choices"]:
            for row in choice["logprobs"]["top_logprobs"]:
                row[next(iter(row))] = value

    vllm.always(changes(change))
    with pytest.raises(ModelLoadError, match="tells no log-probabilities; .*raw_logprobs"):
        load(vllm)


# Servers that are none, or not as they should be


@pytest.mark.parametrize("owner", ["openai", None, ["vllm"], {}, 7])
def test_a_server_of_another_kind_is_refused(vllm: FaultyServer, owner: Any) -> None:
    def change(data: Any) -> None:
        data["data"][0]["owned_by"] = owner

    vllm.always(changes(change), "/v1/models")
    with pytest.raises(ModelLoadError, match="none that is known here; use a vLLM, a llama-server"):
        load(vllm)


def without(*path: Any) -> Callable[[Any], Any]:
    """Takes a part out."""

    def change(data: Any) -> Any:
        *way, last = path
        for key in way:
            data = data[key]
        del data[last]

    return change


ODD: list[tuple[Kind, str, Callable[[Any], Any]]] = [
    *(
        ("vllm", "/v1/models", lambda _, given=given: given)
        for given in ([], {}, 7, "x", {"data": 7}, {"data": ["a"]}, {"data": [[]]}, {"data": [{}]})
    ),
    ("vllm", "/v1/models", lambda _: {"data": []}),
    ("vllm", "/v1/models", lambda d: d["data"][0].update(max_model_len="long")),
    ("vllm", "/v1/models", lambda d: d["data"][0].update(max_model_len=1e999)),
    ("vllm", "/v1/models", lambda d: d["data"][0].update(aliases=7)),
    ("vllm", "/v1/models", lambda d: d["data"][0].update(root={"a": 1})),
    ("vllm", "/tokenize", lambda _: {}),
    ("vllm", "/tokenize", lambda _: {"tokens": ["a"]}),
    ("vllm", "/tokenize", lambda _: {"tokens": None}),
    ("vllm", "/v1/completions", without("choices")),
    ("vllm", "/v1/completions", without("choices", 0)),
    ("vllm", "/v1/completions", without("choices", 0, "logprobs")),
    ("llamacpp", "/v1/models", without("data", 0, "meta")),
    ("llamacpp", "/props", without("total_slots")),
    ("llamacpp", "/props", without("default_generation_settings")),
    ("llamacpp", "/props", lambda _: []),
    ("llamacpp", "/completion", without(0, "completion_probabilities")),
    ("llamacpp", "/completion", without(0)),
    ("sglang", "/server_info", without("max_req_input_len")),
    ("sglang", "/generate", without("meta_info")),
    ("sglang", "/generate", without("meta_info", "input_top_logprobs", 1)),
]


@pytest.mark.parametrize(("kind", "path", "change"), ODD)
def test_odd_answers_are_errors_of_ours(
    kind: Kind, path: str, change: Callable[[Any], Any], model: Model
) -> None:
    with serving(kind, model) as server:
        server.always(changes(change), path)
        with pytest.raises((ModelError, InvalidArgumentError)) as caught:
            load(server)
        assert server.url in str(caught.value) or "tokenizer" in str(caught.value)
        assert report(server.url).problem is not None


@pytest.mark.parametrize("path", ["/v1/models", "/tokenize", "/v1/completions"])
@pytest.mark.parametrize(
    ("fault", "says_so"),
    [
        (closes, "broke the connection off"),
        (cuts, "no JSON"),
        (refuses(401), "set api_key in its ModelSpec, or SAFE_INTEGRATIONS_API_KEY"),
        (refuses(403), "set api_key"),
        (refuses(503), "raise max_retries"),
        (refuses(500), "look into its log"),
        (says("<html>", kind="text/html"), "is it a vLLM"),
        (says("", 307, Location="http://localhost:1"), "the address that it sends you to"),
        (is_silent, "set request_timeout"),
    ],
)
def test_failures_while_loading_say_what_to_do(
    vllm: FaultyServer, path: str, fault: Fault, says_so: str
) -> None:
    vllm.always(fault, path)
    timeout = 0.3 if fault is is_silent else 20
    with pytest.raises(ModelLoadError, match=rf"^127\.0\.0\.1:\d+: http.*{says_so}"):
        load(vllm, request_timeout=timeout, max_retries=1)


def test_nobody_is_there(vllm: FaultyServer) -> None:
    vllm.leave()
    with pytest.raises(ModelLoadError, match="cannot be reached; start it, or check the address"):
        load(vllm)
    assert "cannot be reached" in str(report(vllm.url).problem)
    vllm.start()
    assert load(vllm).name


@pytest.mark.parametrize(
    "source", ["http://[::1/v1", "http://h:99999/v1", "http://h:0/v1", "http://a b/v1", "http://"]
)
def test_an_address_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(InvalidArgumentError, match="^source=.*write http://host:port/v1") as caught:
        ModelSpec(source=source, api_key=KEY)
    assert KEY not in "".join(traceback.format_exception(caught.value))


# Keys


def test_a_key_opens_a_server(vllm: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm.key = KEY
    with pytest.raises(ModelLoadError, match="Unauthorized .status 401.; set api_key"):
        load(vllm)
    with pytest.raises(ModelLoadError, match="Unauthorized"):
        load(vllm, api_key=SecretStr("wrong"))
    assert load(vllm, api_key=SecretStr(KEY)).name
    assert load(vllm, api_key=KEY).name
    unload_models()
    monkeypatch.setenv(ENV, "wrong")
    assert load(vllm, api_key=KEY).name, "what is said goes before the environment"
    with pytest.raises(ModelLoadError, match="Unauthorized"):
        load(vllm)
    monkeypatch.setenv(ENV, KEY)
    assert load(vllm).name
    assert load(vllm, api_key="").name, "none is none"


def test_models_of_different_keys_are_not_shared(vllm: FaultyServer) -> None:
    members = [load(vllm, api_key=key) for key in (None, "a", "b", "a", None)]
    assert members[1] is members[3]
    assert members[0] is members[4]
    assert len({*map(id, members)}) == 3
    keys = {key_of(ModelSpec(source=vllm.url, api_key=key)) for key in (None, "a", "b")}
    assert len(keys) == 3


def test_a_pickled_spec_takes_its_key_from_the_environment(
    vllm: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.key = KEY
    there = pickle.loads(pickle.dumps(ModelSpec(source=vllm.url, api_key=KEY)))
    assert there.api_key is None
    with pytest.raises(ModelLoadError, match="set api_key"):
        load_member(there)
    monkeypatch.setenv(ENV, KEY)
    assert load_member(there).name


@pytest.mark.parametrize("given", [{"api_key": KEY}, {"max_retries": 1}])
def test_what_servers_have_of_their_own_is_not_taken_for_all(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ModelSpec of each served model") as caught:
        ChatSafe(drafter="smollm2-135m", verifiers=["http://h/v1"], **given)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))
    ChatSafe(drafter="smollm2-135m", **given)


@pytest.mark.parametrize("made", [ChatSafe, SafeLLM])
@pytest.mark.parametrize("field", ["drafter", "verifiers"])
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"source": "http://h/v1", "modle": "a", "api_key": KEY}, "modle='a': there is no such"),
        ({"api_key": KEY}, "source=None: Field required"),
        ([[{"api_key": KEY}]], "pass a hub id"),
    ],
)
def test_a_key_stands_in_no_error_of_an_adapter(
    made: Any, field: str, given: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        made(**{field: given})
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


def shown_by_adapters(spec: ModelSpec) -> Iterator[str]:
    from langchain_core.load import dumps

    chat = ChatSafe(drafter=spec, verifiers=[spec], max_tokens=5)
    yield from (dumps(chat), repr(chat), str(chat), str(pickle.dumps(chat)))
    yield from (str(chat._identifying_params), str(chat._get_ls_params()), str(chat.metadata))
    yield from (str(chat.model_dump()), str(chat._get_invocation_params()), str(chat.profile))
    message = chat.invoke("Go.")
    yield from (repr(message), dumps(message))
    llm = SafeLLM(drafter=spec, verifiers=(spec,), max_tokens=5)
    yield from (str(llm.to_dict()), llm.to_json(), repr(llm), str(llm), str(pickle.dumps(llm)))
    yield from (str(llm.metadata), repr(llm.complete("Go.")), str(llm.model_dump()))


@pytest.mark.parametrize("from_environment", [True, False])
def test_a_key_stands_nowhere(
    from_environment: bool,
    vllm: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vllm.key = KEY
    caplog.set_level(logging.DEBUG)
    for name in [*logging.root.manager.loggerDict]:
        logging.getLogger(name).setLevel(logging.NOTSET)
    told: list[str] = []
    if from_environment:
        monkeypatch.setenv(ENV, KEY)
    spec = ModelSpec(source=vllm.url, api_key=None if from_environment else SecretStr(KEY))
    member = load_member(spec, told.append)
    events = [*SafeEngine(member, [member]).generate("Go.", GenerationConfig(max_tokens=5))]
    result = Result.of(iter(events))
    shown = [
        *told,
        caplog.text,
        *(repr(value) for value in (spec, member, events, result, vars(spec), report(spec))),
        *(json.dumps(dump(event), default=repr) for event in events),
        *(repr(reported(event)) for event in events),
        json.dumps(dump(result), default=repr),
        str(spec.model_dump()),
        spec.model_dump_json(),
        str(pickle.dumps(spec)),
        key_of(spec),
        *shown_by_adapters(spec),
    ]
    assert len(caplog.records) > 20
    for text in shown:
        assert KEY not in text
        assert "sesame" not in text
