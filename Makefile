# make demo: the main job. make test: everything that must pass. Each sets up .venv on a fresh machine.
PYTHON ?= python3
DATA_DIR ?=
BIN := .venv/bin
DATA_OPTION := $(if $(DATA_DIR),--data-dir=$(abspath $(DATA_DIR)),)

.PHONY: setup demo test lint types unit test-page soak bench bench-peers clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,dp]' --constraint constraints.txt
	touch $@

demo: setup
	$(BIN)/sgdscope demo --out demo

test: lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -n 2 $(DATA_OPTION)

test-page: setup
	$(BIN)/python -m pytest -m browser tests

soak: setup
	$(BIN)/python -m pytest -m soak tests --timeout 3600

bench: setup
	$(BIN)/python -m benchmarks

# Ours against the tools of others, each in an environment of its own (.venv-peers-NAME); PEERS=--quick for the MLP alone.
bench-peers: setup
	$(BIN)/python -m benchmarks.peers $(DATA_OPTION) $(PEERS)

clean:
	rm -rf .venv demo runs
