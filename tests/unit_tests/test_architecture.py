"""The arrows of docs/how-it-works.md point down only, lazy imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import safe_integrations

PACKAGE = Path(safe_integrations.__file__).parent
OURS = "safe_integrations"
LONGEST_FILE = 400  # lines

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

KNOWN_TO_ALL = {"config", "errors", "messages"}
MAY_USE = {
    "errors": set(),
    "messages": {"errors"},
    "config": {"errors", "messages"},
    "engine": set(),
    "structure": {"engine"},
    "calls": {"structure"},
    "report": {"engine"},
    "models": {"calls", "engine"},
    "safe_engine": {"calls", "engine", "models", "report", "structure"},
    "adapters": {"calls", "engine", "models", "report", "safe_engine", "structure"},
    "langchain": {"adapters", "engine", "report"},
    "llama_index": {"adapters", "engine", "report"},
    "evaluate": {"engine", "models", "report", "safe_engine"},
    "testing": {"engine"},
    "cli": {"engine", "evaluate", "models", "report", "safe_engine", "structure"},
}
"""Which parts each part may import, besides itself and what everybody may know."""

ENGINE = (
    ("rows", "tokens"),
    ("segments", "text", "events", "model", "units", "noise"),
    ("distribution", "lookahead"),
    ("ensemble",),
    ("sampling",),
    ("partial",),
    ("view", "closing"),
    ("draft", "rule", "unit_reader"),
    ("drafter", "judge", "unit_rule"),
    ("baseline", "unit_merges", "unit_draws"),
    ("token_rule",),
    ("loop",),
    ("reasoning",),
)
"""The floors inside engine/, the lowest first: each may use those below it."""

ONLY_IN = {
    "torch": {"models"},
    "transformers": {"models"},
    "tokenizers": {"models"},
    "huggingface_hub": {"models"},
    "gguf": {"models"},
    "jsonschema": {"structure"},
    "llguidance": {"structure"},
    "langchain_core": {"langchain"},
    "llama_index": {"llama_index"},
    "opentelemetry": {"report"},
    "typer": {"cli"},
    "rich": {"cli", "report"},
}


def part_of(module: str) -> str:
    """`safe_integrations.cli.app` -> `cli`; `safe_integrations` -> ``."""
    return module.split(".")[1] if "." in module else ""


def imports(module: str) -> Iterator[str]:
    """Modules that a module imports, anywhere in it: at its top, in functions, for types."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module is not None
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def ours(module: str) -> set[str]:
    """Modules of the package that a module imports; the version may be asked for anywhere."""
    return {m for m in imports(module) if m.split(".")[0] == OURS and m != OURS}


@pytest.mark.parametrize("module", [m for m in MODULES if m != OURS])
def test_arrows_point_down(module: str) -> None:
    """An engine that knew an adapter could not be used without it."""
    part = part_of(module)
    allowed = MAY_USE[part] | (set() if part in KNOWN_TO_ALL else KNOWN_TO_ALL) | {part}
    assert {part_of(name) for name in ours(module)} <= allowed


def test_the_parts_form_floors() -> None:
    """What `MAY_USE` allows has no circle."""
    assert set(TopologicalSorter(MAY_USE).static_order()) == set(MAY_USE)


@pytest.mark.parametrize("floor", range(len(ENGINE)))
def test_arrows_point_down_inside_the_engine(floor: int) -> None:
    below = {f"{OURS}.engine.{name}" for names in ENGINE[:floor] for name in names}
    for name in ENGINE[floor]:
        inside = {m for m in ours(f"{OURS}.engine.{name}") if part_of(m) == "engine"}
        assert inside <= below, name


def test_every_module_of_the_engine_has_a_floor() -> None:
    found = {m.split(".")[2] for m in MODULES if m.startswith(f"{OURS}.engine.")}
    assert found == {name for names in ENGINE for name in names}


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_at_the_edges(library: str) -> None:
    users = {part_of(m) for m in MODULES for name in imports(m) if name.split(".")[0] == library}
    assert users <= ONLY_IN[library]


def test_there_are_no_import_cycles() -> None:
    """Nor lazy ones: a circle hidden in a function is a circle."""
    graph = {m: ours(m) & set(MODULES) for m in MODULES if m != OURS}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST_FILE


def test_the_package_was_found() -> None:
    """A wrong path would make every test above pass on nothing."""
    assert {f"{OURS}.engine.loop", f"{OURS}.engine.tokens"} <= set(MODULES)
