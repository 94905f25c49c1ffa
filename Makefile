# The two commands are `make quickstart` and `make test`; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER_VENV := .venv-mobile-env

export OMP_NUM_THREADS := 1

.PHONY: install quickstart results test test-all lint benchmark benchmark-peers clean

install: $(STAMP)

# torch goes first and pinned: a CPU build where one is at hand, and never a surprise upgrade.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

quickstart: install
	$(BIN)/uara quickstart

results: install
	$(BIN)/uara results

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	$(BIN)/python -m pytest -m 'not slow' -n 2

test-all: install
	$(BIN)/python -m pytest -n 2

# mobile-env lives in an environment of its own, so that its pins do not meet ours.
benchmark-peers: $(PEER_VENV)/.installed

$(PEER_VENV)/.installed:
	$(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip install --quiet mobile-env==2.1.0
	touch $@

benchmark: install benchmark-peers
	$(BIN)/python -m benchmarks.env_speed

clean:
	rm -rf $(VENV) $(PEER_VENV) runs banks
