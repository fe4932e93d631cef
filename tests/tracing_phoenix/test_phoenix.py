"""A real tracer: pipelines of both frameworks, real models, spans read back from Arize Phoenix.

`make trace-check` installs Phoenix in an environment of its own and runs this. Set PHOENIX to its
command to run it by hand; PHOENIX_LINGER=600 keeps the server up that many seconds to look at.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from llama_index.core import SummaryIndex
from llama_index.core.schema import TextNode
from openinference.instrumentation.langchain import LangChainInstrumentor
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.report import tracing

PROJECT = "safe-integrations"
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        text = response.read().decode()
    return json.loads(text) if text.startswith(("{", "[")) else text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Phoenix on loopback that talks to nobody."""
    command = os.environ.get("PHOENIX")
    if not command:
        pytest.skip("PHOENIX does not name the phoenix command")
    folder: Path = tmp_path_factory.mktemp("phoenix")
    port = int(os.environ.get("PHOENIX_PORT", free_port()))
    environment = os.environ | {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([command, "serve"], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                get(f"{url}/healthz")
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(1)
        else:
            raise AssertionError((folder / "log").read_text())
        yield url
        time.sleep(float(os.environ.get("PHOENIX_LINGER", 0)))
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def spans(server: str) -> list[dict[str, Any]]:
    """What Phoenix knows after one question to each framework, one of them streamed."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource({"openinference.project.name": PROJECT}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{server}/v1/traces")))
    instrumentors = [LlamaIndexInstrumentor(), LangChainInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    tracing.enable(provider, capture_text=True)
    try:
        llm = SafeLLM(max_tokens=16)
        node = TextNode(text="The captain of the Blue Fox is Maria Lund.")
        engine = SummaryIndex([node]).as_query_engine(llm=llm, streaming=True)
        assert "".join(engine.query("Who is the captain?").response_gen)  # type: ignore[union-attr]
        prompt = ChatPromptTemplate.from_template("Name the capital of {country}.")
        (prompt | ChatSafe(max_tokens=16)).invoke({"country": "France"})
    finally:
        tracing.disable()
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
        provider.shutdown()
    found: list[dict[str, Any]] = []
    for _ in range(60):
        found = get(f"{server}/v1/projects/{PROJECT}/spans?limit=100")["data"]
        if [span["name"] for span in found].count("safe.generate") == 2:
            break
        time.sleep(1)
    return found


@pytest.mark.parametrize(
    ("caller", "root"),
    [("SafeLLM.stream_chat", "RetrieverQueryEngine.query"), ("ChatSafe", "RunnableSequence")],
)
def test_generations_hang_under_the_llm_span(
    spans: list[dict[str, Any]], caller: str, root: str
) -> None:
    by_id = {span["context"]["span_id"]: span for span in spans}
    children = [span for span in spans if span["name"] == "safe.generate"]
    (generation,) = [s for s in children if by_id[s["parent_id"]]["name"] == caller]
    parent = by_id[generation["parent_id"]]
    assert (parent["span_kind"], generation["span_kind"]) == ("LLM", "CHAIN")
    attributes = generation["attributes"]
    summary = {k: v for k, v in attributes.items() if k.startswith("safe.")}
    assert summary["safe.models"] == ["smollm2-135m", "gemma3-270m"]
    assert summary.items() <= parent["attributes"].items()
    names = [event["name"] for event in generation["events"]]
    assert names.count("safe.verification") == summary["safe.cycles"]
    assert names.count("safe.ensemble") == summary["safe.ensembled"]
    assert parent["attributes"]["llm.token_count.completion"] == summary["safe.tokens"]
    top = parent
    while top["parent_id"] is not None:
        top = by_id[top["parent_id"]]
    assert top["name"] == root
    assert generation["context"]["trace_id"] == top["context"]["trace_id"]
