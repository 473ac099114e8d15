# `make demo` and `make test` each set everything up on a fresh machine; later runs start within seconds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# mecroute uses no image input; leaving it out shortens the build of llama.cpp.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo dev test check lint types tests test-all bench bench-serving bench-routing format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

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

bench-routing: $(READY)  ## DATA=folder with mmlu.csv and gsm8k.csv: how well the learned router routes
	@test -n "$(DATA)" || { echo "name the folder of the CSV files: make bench-routing DATA=folder"; exit 1; }
	$(BIN)/mecroute bench routing --train $(DATA)/mmlu.csv --eval $(DATA)/mmlu.csv
	$(BIN)/mecroute bench routing --train $(DATA)/gsm8k.csv --eval $(DATA)/gsm8k.csv
	$(BIN)/mecroute bench routing --train $(DATA)/gsm8k.csv --eval $(DATA)/gsm8k.csv --cascade

format: $(READY)  ## put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and what tools left behind
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
