# `make demo` and `make test` each set everything up on a fresh machine; later runs start within seconds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# GCC before 11.5, 12.4 and 13.3 drops what AMX code stores (gcc.gnu.org/PR114098): every step of llama.cpp then
# ends in SIGSEGV on a processor that has AMX. It shows in that compiler's own header.
AMX_HEADER := $(shell c++ -print-file-name=include 2>/dev/null)/amxtileintrin.h
NO_AMX := $(shell grep -qs 'ldtilecfg.*void \*\*' $(AMX_HEADER) && echo -mno-amx-int8)
# mecroute uses no image input; leaving it out shortens the build of llama.cpp.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF $(if $(NO_AMX),-DCMAKE_C_FLAGS=$(NO_AMX) -DCMAKE_CXX_FLAGS=$(NO_AMX))
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo dev test check lint types tests test-all bench format clean \
	bench-serving bench-serving-python bench-trace bench-latency bench-embeddings bench-overhead bench-idle bench-soak bench-connections \
	bench-routing bench-simulate bench-tiers

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mecroute needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (the first time llama.cpp is compiled: 5 to 10 minutes)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## the main job, end to end, on a real model
	$(BIN)/mecroute demo

dev: $(READY)  ## device, MEC node, cloud and router on this machine, until Ctrl-C
	$(BIN)/mecroute dev

test: check  ## everything CI runs

check: lint types tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy
	$(BIN)/pyright

tests: $(READY)
	$(BIN)/pytest

test-all: lint types  ## CI's checks and the slow tests
	$(BIN)/pytest -m ''

bench: $(READY)  ## every comparison with a peer, ratios measured in one run
	$(BIN)/python benchmarks/imports.py

bench-serving: $(READY)  ## DATA=model.gguf: our server against llama-server (builds it once, 8 minutes)
	@test -n "$(DATA)" || { echo "name a GGUF model: make bench-serving DATA=model.gguf"; exit 1; }
	$(BIN)/python benchmarks/serving.py $(DATA)

bench-serving-python: $(READY)  ## DATA=model.gguf: against llama-cpp-python's own server
	@test -n "$(DATA)" || { echo "name a GGUF model: make $@ DATA=model.gguf"; exit 1; }
	$(BIN)/python benchmarks/serving.py $(DATA) --peer llama-cpp-python --scenarios fresh --concurrency 8 --requests 2

bench-trace: $(READY)  ## DATA=model.gguf TRACE=trace.csv: a trace at twice the capacity
	@test -n "$(DATA)" -a -n "$(TRACE)" || { echo "make $@ DATA=model.gguf TRACE=trace.csv"; exit 1; }
	$(BIN)/python benchmarks/replay.py $(DATA) $(TRACE)

bench-latency: $(READY)  ## DATA=model.gguf TRACE=trace.csv: how well the client predicts latency
	@test -n "$(DATA)" -a -n "$(TRACE)" || { echo "make $@ DATA=model.gguf TRACE=trace.csv"; exit 1; }
	$(BIN)/python benchmarks/latency.py $(DATA) $(TRACE)

bench-embeddings: $(READY)  ## DATA=folder of all-MiniLM-L6-v2: against session.run and LitServe
	@test -n "$(DATA)" || { echo "make $@ DATA=folder with model.safetensors and tokenizer.json"; exit 1; }
	$(BIN)/python benchmarks/embeddings.py $(DATA)

bench-idle: $(READY)  ## DATA=model.gguf: memory of an idle node
	@test -n "$(DATA)" || { echo "name a GGUF model: make $@ DATA=model.gguf"; exit 1; }
	$(BIN)/python benchmarks/idle.py $(DATA)

bench-soak: $(READY)  ## DATA=model.gguf MINUTES=30: does anything grow under a mixed load
	@test -n "$(DATA)" || { echo "name a GGUF model: make $@ DATA=model.gguf"; exit 1; }
	$(BIN)/python benchmarks/soak.py $(DATA) --minutes $(or $(MINUTES),30)

bench-connections: $(READY)  ## DATA=model.gguf: 10,000 connections that hang
	@test -n "$(DATA)" || { echo "name a GGUF model: make $@ DATA=model.gguf"; exit 1; }
	$(BIN)/python benchmarks/connections.py $(DATA)

bench-overhead: $(READY)  ## what a call costs beyond raw HTTP, against LiteLLM's Router (installs it once)
	$(BIN)/python benchmarks/overhead.py

bench-simulate: $(READY)  ## TRACE=trace.csv (or none): 100 nodes and 100,000 requests in virtual time, against baselines
	$(BIN)/mecroute simulate $(TRACE) --nodes 100 --requests 100000

bench-routing: $(READY)  ## DATA=folder with mmlu.csv and gsm8k.csv: how well the learned router routes
	@test -n "$(DATA)" || { echo "name the folder of the CSV files: make bench-routing DATA=folder"; exit 1; }
	$(BIN)/mecroute bench routing --train $(DATA)/mmlu.csv --eval $(DATA)/mmlu.csv
	$(BIN)/mecroute bench routing --train $(DATA)/gsm8k.csv --eval $(DATA)/gsm8k.csv
	$(BIN)/mecroute bench routing --train $(DATA)/gsm8k.csv --eval $(DATA)/gsm8k.csv --cascade

bench-tiers: $(READY)  ## DATA=folder MODELS=folder: four real tiers, and whether auto beats any of them (an hour)
	@test -n "$(DATA)" -a -n "$(MODELS)" || { echo "make $@ DATA=folder of data MODELS=folder of models"; exit 1; }
	$(BIN)/python benchmarks/tiers.py $(DATA) $(MODELS) --docs docs

format: $(READY)  ## put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and what tools left behind
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
