# The two commands are `make quickstart` and `make test`; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER_VENV := .venv-mobile-env
RT_VENV := .venv-channels-rt
TF_VENV := .venv-channels-tf
TORCHRL := .peers-torchrl

export OMP_NUM_THREADS := 1

.PHONY: install quickstart results test test-all lint benchmark benchmark-peers benchmark-training \
	channels-rt channels-tf clean

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

# TorchRL goes into a folder of its own that only this benchmark puts on its path; torch is ours.
benchmark-training: install $(TORCHRL)/.installed
	$(BIN)/python -m benchmarks.training_speed

$(TORCHRL)/.installed:
	$(BIN)/python -m pip install --quiet --target $(TORCHRL) --no-deps torchrl==0.14.1 \
	  tensordict==0.14.3 pyvers==0.2.3 hoptorch cloudpickle
	touch $@

# Two further channel builders, each in an environment of its own, since their pins clash with ours.
# `uara channels build TASK --backend rt --python .venv-channels-rt/bin/python` uses the first.
channels-rt: $(RT_VENV)/.installed

# Sionna RT compiles its kernels with LLVM 19 or newer; its probe says at once where that is missing.
$(RT_VENV)/.installed: constraints-channels-rt.txt
	$(PYTHON) -m venv $(RT_VENV)
	$(RT_VENV)/bin/python -m pip install --quiet --constraint $< torch
	$(RT_VENV)/bin/python -m pip install --quiet --constraint $< sionna
	@$(RT_VENV)/bin/python -I uara/radio/ray_tracing.py --probe 2>/dev/null || { \
	  echo 'LLVM 19 is missing: `apt-get install libllvm19`, or name it in DRJIT_LIBLLVM_PATH'; \
	  exit 1; }
	touch $@

channels-tf: $(TF_VENV)/.installed

$(TF_VENV)/.installed: constraints-channels-tf.txt
	$(PYTHON) -m venv $(TF_VENV)
	$(TF_VENV)/bin/python -m pip install --quiet --constraint $< sionna-no-rt tensorflow
	$(TF_VENV)/bin/python -I uara/radio/tensorflow_umi.py --probe
	touch $@

clean:
	rm -rf $(VENV) $(PEER_VENV) $(RT_VENV) $(TF_VENV) $(TORCHRL) runs banks
