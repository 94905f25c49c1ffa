# The two commands are `make quickstart` and `make test`; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS := 1

.PHONY: install quickstart results test test-all lint clean

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

clean:
	rm -rf $(VENV) runs banks
