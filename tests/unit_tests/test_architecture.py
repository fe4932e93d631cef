"""The arrows of docs/how-it-works.md point down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import safe_integrations

PACKAGE = Path(safe_integrations.__file__).parent
OURS = "safe_integrations"

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

EDGES = ("adapter", "backends", "cli", "langchain", "llama_index", "loading", "tracing")
"""Parts that know the outside world. The rest is the engine: pure code over bytes and numbers."""

MAY_USE = {
    "backends": {"backends"},
    "loading": {"backends", "loading"},
    "cli": {"backends", "cli", "loading", "tracing"},
    "adapter": {"backends", "loading"},
    "langchain": {"adapter", "langchain", "loading", "tracing"},
    "llama_index": {"adapter", "backends", "llama_index", "loading", "tracing"},
    "tracing": {"tracing"},
}
"""Which edges each edge may import. What is not named here is the engine and may use none."""

ONLY_IN = {
    "torch": {"backends"},
    "transformers": {"backends"},
    "tokenizers": {"backends"},
    "huggingface_hub": {"backends"},
    "gguf": {"backends"},
    "langchain_core": {"langchain"},
    "llama_index": {"llama_index"},
    "opentelemetry": {"tracing"},
    "typer": {"cli"},
    "rich": {"cli", "langchain"},  # the callback handler that prints
}


def part_of(module: str) -> str:
    """`safe_integrations.cli.app` -> `cli`; `safe_integrations.engine.loop` -> `engine`."""
    return module.split(".")[1] if "." in module else ""


def imports(module: str, everywhere: bool = True) -> Iterator[str]:
    """Modules that a module imports: anywhere in it, or only those run when it is imported."""
    tree = ast.parse(MODULES[module].read_text())
    nodes: list[ast.AST] = list(ast.walk(tree)) if everywhere else list(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module is not None
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


@pytest.mark.parametrize("module", [m for m in MODULES if m != OURS])
def test_arrows_point_down(module: str) -> None:
    """An engine that knew an adapter could not be used without it."""
    allowed = MAY_USE.get(part_of(module), set())
    used = {part_of(name) for name in imports(module) if name.split(".")[0] == OURS}
    assert used & set(EDGES) <= allowed


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) in {"backends", "tools"}])
def test_backends_and_tools_do_not_know_the_engine(module: str) -> None:
    """A backend is one model; what several of them write together is none of its business."""
    used = {part_of(name) for name in imports(module) if name.split(".")[0] == OURS}
    assert used.isdisjoint({"engine", "participant", "verify", "ensemble"})


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_at_the_edges(library: str) -> None:
    users = {part_of(m) for m in MODULES for name in imports(m) if name.split(".")[0] == library}
    assert users <= ONLY_IN[library]


def test_there_are_no_import_cycles() -> None:
    graph = {
        m: {name for name in imports(m, everywhere=False) if name in MODULES and name != OURS}
        for m in MODULES
        if m != OURS
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_package_was_found() -> None:
    """A wrong path would make every test above pass on nothing."""
    assert {"safe_integrations.engine.loop", "safe_integrations.engine.tokens"} <= set(MODULES)
