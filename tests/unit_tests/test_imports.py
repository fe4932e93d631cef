"""Importing costs nothing, and what is public stays public."""

from __future__ import annotations

import subprocess
import sys

import pytest

import safe_integrations

HEAVY = ("torch", "transformers", "tokenizers", "langchain_core", "llama_index", "opentelemetry")


def imported_by(code: str) -> set[str]:
    """Top-level modules loaded by a program in a fresh interpreter."""
    probe = f"{code}\nimport sys\nprint('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import safe_integrations",
        "from safe_integrations import SafeEngine, EnsembleConfig, Message, Result",
        """
from safe_integrations import SafeEngine
from safe_integrations.testing import ScriptedMember, follows
members = [ScriptedMember("m", [], follows(b"ok")) for _ in range(2)]
assert SafeEngine(members[0], members[1:]).complete("Go.").text == "ok"
""",
    ],
    ids=["the package", "its names", "a whole generation"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    """torch takes seconds to import; a pipeline's tests on scripted members need none of it."""
    assert imported_by(code) & set(HEAVY) == set()


def test_importing_the_package_needs_the_standard_library_only() -> None:
    assert imported_by("import safe_integrations") & {"numpy", "pydantic"} == set()


_NOT_INSTALLED = """
import sys
class Nowhere:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nowhere())
"""


def run_without(missing: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Runs a program where some libraries are not installed."""
    program = _NOT_INSTALLED.format(missing=missing) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("adapter", ["langchain", "llama_index"])
def test_adapters_need_none_of_the_extras(adapter: str) -> None:
    """A service had to install a command line and a GGUF reader to import a chat model."""
    extras = {"typer", "rich", "psutil", "gguf", "llguidance", "opentelemetry"}
    done = run_without(extras, f"import safe_integrations.{adapter}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_the_command_line_says_what_to_install(missing: str) -> None:
    done = run_without({missing}, "from safe_integrations.cli import main; main()")
    assert done.returncode == 1
    assert done.stderr == (f"error: {missing} is missing: pip install 'safe-integrations[cli]'\n")


def test_public_names() -> None:
    """Adding one is a decision, taking one away breaks people."""
    assert sorted(safe_integrations.__all__) == [
        "EnsembleConfig",
        "GenerationConfig",
        "Message",
        "Result",
        "SafeEngine",
        "SafeError",
        "load_engine",
    ]


@pytest.mark.parametrize("name", [n for n in safe_integrations.__all__ if n != "load_engine"])
def test_public_name_is_there(name: str) -> None:
    assert getattr(safe_integrations, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SaveEngine'"):
        _ = safe_integrations.SaveEngine
