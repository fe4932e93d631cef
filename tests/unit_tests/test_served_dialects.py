"""What each kind of server is sent, and what its answers mean, by what real ones have answered."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from math import exp, inf
from pathlib import Path
from typing import Any

import httpx
import pytest

from safe_integrations.errors import ServerError
from safe_integrations.models.served.client import Client
from safe_integrations.models.served.dialect import UNREADABLE, Dialect, Prefix, Request, Told
from safe_integrations.models.served.find import find
from safe_integrations.models.served.llama_server import LlamaServer
from safe_integrations.models.served.sglang import Sglang
from safe_integrations.models.served.vllm import Vllm

RECORDED = Path(__file__).parent.parent / "recorded"
ROOT = "http://localhost:8000"
FRANCE = [504, 3575, 282, 4649, 314]
PARIS = [7042, 30, 198]
KINDS = ("vllm", "llama_server", "sglang")

OURS: dict[str, set[str]] = {
    "vllm": {
        "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    },
    "llama_server": {"response_fields"},
    "sglang": {"return_text_in_logprobs"},
}  # fmt: skip
"""What our requests hold besides what the recorded ones do."""


@cache
def recorded(kind: str) -> dict[str, Any]:
    entries = json.loads((RECORDED / f"{kind}.json").read_text())
    return {entry["name"]: entry for entry in entries}


def response(kind: str, name: str) -> Any:
    """What was answered; of a llama-server, the fields that we ask for, as it writes them."""
    request, data = recorded(kind)[name]["request"], recorded(kind)[name]["response"]
    if recorded(kind)[name]["path"] != "/completion" or "response_fields" in request:
        return data
    results = [
        {
            **{name: one[name] for name in ("tokens", "completion_probabilities", "model")},
            **{f"timings/{name}": one["timings"][name] for name in ("cache_n", "prompt_n")},
        }
        for one in (data if isinstance(data, list) else [data])
    ]
    return results if isinstance(data, list) else results[0]


def dialect(kind: str, top: int = 5) -> Dialect:
    if kind == "vllm":
        return Vllm(ROOT, "smol", top)
    return LlamaServer(ROOT, 49152, top) if kind == "llama_server" else Sglang(ROOT, top)


def first(requests: Iterator[Request]) -> Request:
    return next(requests)


Make = Callable[[Dialect, Prefix], Request]
ROWS: Make = lambda d, p: d.rows(p, PARIS, 0)  # noqa: E731
DRAFT: Make = lambda d, p: d.draft(p, [], 5)  # noqa: E731
LAST: Make = lambda d, p: d.rows(p, [], 0)  # noqa: E731
ASK: Make = lambda d, p: first(d.ask(p, [], [42, 1000, 2], ()))  # noqa: E731
AMONG: Make = lambda d, p: first(d.among(p, [], [42, 1000]))  # noqa: E731

CASES = [
    ("vllm", "draft of 5", DRAFT),
    ("vllm", "draft that ends in END", DRAFT),
    ("vllm", "prefixes", ROWS),
    ("vllm", "ids asked for", ASK),
    ("vllm", "only some ids allowed", AMONG),
    ("llama_server", "draft of 5", DRAFT),
    ("llama_server", "draft that ends in END", DRAFT),
    ("llama_server", "prefixes", ROWS),
    ("sglang", "draft of 5", DRAFT),
    ("sglang", "draft that ends in END", DRAFT),
    ("sglang", "rows of a drafted text", ROWS),
    ("sglang", "row after a prompt", LAST),
]


def prompt_of(entry: Mapping[str, Any]) -> list[int]:
    """The prompt of a recorded request, without what was generated behind it."""
    request = entry["request"]
    texts: Any = request.get("prompt", request.get("input_ids"))
    prompt: list[int] = texts[0] if isinstance(texts[0], list) else texts
    return prompt[: len(FRANCE)] if prompt[: len(FRANCE)] == FRANCE else prompt


def told(kind: str, name: str, make: Make) -> Told:
    entry = recorded(kind)[name]
    return make(dialect(kind), Prefix(prompt_of(entry))).read(response(kind, name))


@pytest.mark.parametrize(("kind", "name", "make"), CASES)
def test_a_request_is_what_was_recorded(kind: str, name: str, make: Make) -> None:
    entry = recorded(kind)[name]
    request = make(dialect(kind), Prefix(prompt_of(entry)))
    assert request.url == ROOT + entry["path"]
    body, given = json.loads(request.body), dict(entry["request"])
    given.pop("return_token_ids", None)
    if kind == "sglang":
        sampling, recorded_ = body.pop("sampling_params"), given.pop("sampling_params")
        assert sampling == {**sampling, **recorded_}
    texts = given.get("prompt")
    if isinstance(texts, list) and isinstance(texts[0], int) and kind == "vllm":
        given["prompt"] = [texts]  # a list of one text is the same
    assert {key: body[key] for key in given} == given
    assert {*body} - {*given} - {"logit_bias"} == OURS[kind] - {*given}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_split_as_they_were_recorded(kind: str) -> None:
    entry = recorded(kind)["tokenize"]
    request = dialect(kind).spell("The capital of France is")
    given = dict(entry["request"])
    if kind == "sglang":
        del given["model"]  # it serves one
    assert json.loads(request.body) == given
    assert request.url == ROOT + entry["path"]
    assert request.read(entry["response"]) == Told((), FRANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_is_ids_and_the_row_in_front_of_each(kind: str) -> None:
    draft = told(kind, "draft of 5", DRAFT)
    assert list(draft.ids) == [*PARIS, 198, 504]
    assert [row.ids[0] for row in draft.rows] == draft.ids, "a greedy token is the best of its row"
    assert [len(row.ids) for row in draft.rows] == [5] * 5
    assert all(sum(map(exp, row.logprobs)) < 1 for row in draft.rows)
    assert draft.rows[0].logprobs[0] == pytest.approx(-0.258, abs=2e-3)
    assert draft.model == (None if kind == "sglang" else "smol")


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_may_end(kind: str) -> None:
    draft = told(kind, "draft that ends in END", DRAFT)
    assert draft.ids[-1] == 2
    assert len(draft.ids) == len(draft.rows) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_in_the_order_of_the_places(kind: str) -> None:
    name = "rows of a drafted text" if kind == "sglang" else "prefixes"
    rows = told(kind, name, ROWS).rows
    assert [row.ids[0] for row in rows] == [*PARIS, 198]
    draft = told(kind, "draft of 5", DRAFT)
    for one, other in zip(rows, draft.rows[:4], strict=True):
        assert {*one.ids[:4]} == {*other.ids[:4]}
        assert one.logprobs[0] == pytest.approx(other.logprobs[0], abs=0.05)


def test_vllm_may_answer_in_any_order() -> None:
    entry = recorded("vllm")["prefixes"]
    data = {**entry["response"], "choices": entry["response"]["choices"][::-1]}
    read = ROWS(dialect("vllm"), Prefix(FRANCE)).read
    assert read(data) == read(entry["response"])


def test_ids_that_were_asked_for_are_in_the_row() -> None:
    (row,) = told("vllm", "ids asked for", ASK).rows
    assert dict(zip(row.ids, row.logprobs, strict=True)) == {
        7042: -0.25807321071624756,
        42: -9.311485290527344,
        1000: -14.762097358703613,
        2: -25.573768615722656,
    }
    (row,) = told("vllm", "only some ids allowed", AMONG).rows
    assert (row.ids[0], row.logprobs[0]) == (42, -9.311485290527344), "before any mask"
    entry = recorded("sglang")["ids asked for, beside the most probable"]
    (row,) = ASK(dialect("sglang"), Prefix(FRANCE)).read(entry["response"]).rows
    assert (row.ids, row.logprobs[0]) == ([42, 1000, 2], -9.291753768920898)
    request = json.loads(ASK(dialect("sglang"), Prefix(FRANCE)).body)
    assert request["token_ids_logprob"] == [42, 1000, 2]


def test_what_came_from_a_cache_is_told_apart_from_what_was_computed() -> None:
    entry = recorded("vllm")["prefixes of a prompt read before"]
    read = ROWS(dialect("vllm"), Prefix(FRANCE)).read(entry["response"])
    assert (read.cached, read.computed) == (32, 123 - 3 * 32)
    read = told("llama_server", "prefixes", ROWS)
    assert read.cached + read.computed == 5 + 6 + 7 + 8
    assert read.cached > 0
    read = told("sglang", "rows of a drafted text", ROWS)
    assert (read.cached, read.computed) == (4, 4)


def test_what_has_no_probability_has_none() -> None:
    """vLLM writes -9999; NaN stays what it is, for the member to refuse."""
    entry = recorded("vllm")["draft of 5"]
    data = json.loads(json.dumps(entry["response"]))
    place = data["choices"][0]["logprobs"]["top_logprobs"][0]
    data["choices"][0]["logprobs"]["top_logprobs"][0] = {**place, "token_id:1": -9999.0}
    row = DRAFT(dialect("vllm"), Prefix(FRANCE)).read(data).rows[0]
    assert (row.ids[-1], row.logprobs[-1]) == (1, -inf)
    place["token_id:1"] = float("nan")
    data["choices"][0]["logprobs"]["top_logprobs"][0] = place
    value = DRAFT(dialect("vllm"), Prefix(FRANCE)).read(data).rows[0].logprobs[-1]
    assert value != value


def test_what_a_llama_server_gives_no_probability_has_none() -> None:
    data = json.loads(json.dumps(response("llama_server", "prefixes")))
    data[0]["completion_probabilities"][0]["top_logprobs"][1]["logprob"] = -3.4028234663852886e38
    row = ROWS(dialect("llama_server"), Prefix(FRANCE)).read(data).rows[0]
    assert row.logprobs[1] == -inf
    assert row.logprobs[2] > -10


def test_vllm_is_asked_for_128_ids_at_a_time() -> None:
    requests = [*dialect("vllm").ask(Prefix(FRANCE), [7], range(300), ())]
    parts = [json.loads(request.body)["logprob_token_ids"] for request in requests]
    assert [len(part) for part in parts] == [128, 128, 44]
    assert [i for part in parts for i in part] == [*range(300)]
    assert json.loads(requests[0].body)["prompt"] == [[*FRANCE, 7]]


def test_a_llama_server_is_asked_for_a_long_row_for_single_ids_and_then_for_all() -> None:
    told: dict[int, float] = {}
    asked = dialect("llama_server").ask(Prefix(FRANCE), [7], [3, 4, 5], told)
    bodies = [json.loads(next(asked).body)]
    told[4] = -1.0  # the long row has it
    bodies += [json.loads(request.body) for request in asked]
    assert [body["n_probs"] for body in bodies] == [2048, 1, 1, 49152]
    assert [body["logit_bias"][0][0] for body in bodies] == ["a", 3, 5, "a"]
    several = dialect("llama_server").among(Prefix(FRANCE), [7], [3, 4])
    bodies = [json.loads(request.body) for request in several]
    assert [[i for i, _ in body["logit_bias"]] for body in bodies] == [[3, 4], ["a"]]
    assert [body["n_probs"] for body in bodies] == [1, 49152]


def test_a_prompt_is_written_once() -> None:
    assert json.loads(Prefix(FRANCE).text([7, 8])) == [*FRANCE, 7, 8]
    texts = json.loads(Prefix(FRANCE).texts([7, 8], 1))
    assert texts == [[*FRANCE, 7], [*FRANCE, 7, 8]]
    assert json.loads(Prefix([]).texts([], 0)) == [[]]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_else_a_server_answers_is_unreadable_and_nothing_worse(kind: str) -> None:
    """Every answer to anything else, and the right one with each of its parts taken out."""
    reads = [make(dialect(kind), Prefix(FRANCE)).read for make in (ROWS, DRAFT, ASK, AMONG)]
    odd = [entry["response"] for entry in recorded(kind).values()]
    odd += [None, 0, "", [], {}, [[]], [None], {"choices": 7}, {"meta_info": []}]
    for name in {"draft of 5", "prefixes", "rows of a drafted text"} & {*recorded(kind)}:
        odd += _spoiled(response(kind, name))
    refused = 0
    for data in odd:
        for read in reads:
            try:
                assert isinstance(read(data), Told)
            except UNREADABLE:
                refused += 1
    assert refused > len(odd)


def _spoiled(data: Any) -> Iterator[Any]:
    """A document with each of its parts replaced."""
    yield from (None, "x", 1e999, [], {})
    if isinstance(data, dict):
        for key, part in data.items():
            yield {k: v for k, v in data.items() if k != key}
            yield from ({**data, key: spoiled} for spoiled in _spoiled(part))
    elif isinstance(data, list) and data:
        yield data[1:]
        yield from ([spoiled, *data[1:]] for spoiled in _spoiled(data[0]))


# Errors


@pytest.fixture(scope="module")
def client() -> Client:
    return Client("smol", f"{ROOT}/v1", "sesame", 5.0, 0)


def answers(client: Client, *entries: Mapping[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Has a client be answered with what was recorded."""
    by_path = {entry["path"]: entry for entry in entries}

    def answer(request: httpx.Request) -> httpx.Response:
        entry = by_path[request.url.path]
        return httpx.Response(entry["status"], json=entry["response"])

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    patch.setattr(client, "_free", deque([(inf, http)]))


ERRORS = [(kind, name) for kind in KINDS for name, e in recorded(kind).items() if e["status"] > 299]


@pytest.mark.parametrize(("kind", "name"), ERRORS)
def test_recorded_errors_say_what_to_do(
    kind: str, name: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = recorded(kind)[name]
    answers(client, entry, patch=monkeypatch)
    with pytest.raises(ServerError) as caught:
        client.begin(ROOT + entry["path"], "{}").result()
    error, data = caught.value, entry["response"]
    assert error.status == entry["status"]
    said = data.get("error", data.get("detail"))
    said = said["message"] if isinstance(said, dict) else said
    assert " ".join(said.split())[:200] in error.problem
    assert "{" not in error.problem.removesuffix(said)[: len(ROOT) + 40]
    expected = {401: "api_key", 403: "api_key", 404: "/v1", 405: "serving.md", 400: "serving.md"}
    assert expected.get(entry["status"], "log") in error.remedy
    assert str(error).startswith("smol: ")
    assert str(entry["status"]) in str(error)


@pytest.mark.parametrize(
    ("kind", "window", "loaded", "size"),
    [
        ("vllm", 4096, "/models/smollm2-135m", None),
        ("llama_server", 512, "/models/SmolLM2-135M-Instruct.Q4_1.gguf", 49152),
        ("sglang", 4090, "/models/smollm2-135m", None),
    ],
)
def test_a_server_says_what_it_is(
    kind: str,
    window: int,
    loaded: str,
    size: int | None,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"models", "props", "server info, shortened"} & {*recorded(kind)}
    answers(client, *(recorded(kind)[name] for name in names), patch=monkeypatch)
    for asked_for in (None, "smol"):
        found = find(client, asked_for)
        assert (found.model, found.window) == ("smol", window)
        assert (found.loaded, found.size) == (loaded, size)
        assert found.kind == dialect(kind).kind
        assert type(found.speak(5)) is type(dialect(kind))
