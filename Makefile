# One virtual environment, .venv, serves every target; `make` installs what is missing and nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
FILES := pyproject.toml constraints.txt
# The other diffusers that is supported, beside the pinned one.
DIFFUSERS := 0.39.0
BESIDE := $(VENV)/diffusers-$(DIFFUSERS)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-diffusers lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## quantize the embedded model, generate images, print where pictures and table are
	$(BIN)/dirotq $(ARGS)

test: $(VENV)/.installed-dev ## the test suite; ARGS are handed to pytest
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-diffusers: $(BESIDE)/.installed ## what touches diffusers, on an older version of it
	PYTHONPATH="$(CURDIR)/$(BESIDE)" $(BIN)/python -c 'import diffusers; v = diffusers.__version__; assert v == "$(DIFFUSERS)", v'
	PYTHONPATH="$(CURDIR)/$(BESIDE)" $(BIN)/python -m pytest -n 2 tests/models tests/test_diffusers_checkpoint.py \
	  tests/test_pipeline.py tests/test_sana_pipeline.py $(ARGS)

lint: $(VENV)/.installed-dev ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## let ruff format the code
	$(BIN)/ruff format .

clean: ## remove the virtual environment and the caches, keep outputs/
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(FILES) | $(VENV)/bin/pip
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(FILES) | $(VENV)/bin/pip
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

$(BESIDE)/.installed: | $(VENV)/.installed-dev
	rm -rf $(VENV)/diffusers-*
	$(PIP) install --quiet --no-deps --target $(BESIDE) diffusers==$(DIFFUSERS)
	touch $@
