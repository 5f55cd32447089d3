# One virtual environment, .venv, serves every target; `make` installs what is missing and nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
FILES := pyproject.toml constraints.txt
# The other diffusers that is supported, beside the pinned one.
DIFFUSERS := 0.39.0
BESIDE := $(VENV)/diffusers-$(DIFFUSERS)
SWEEP := outputs/sweeps/small
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo sweep test test-diffusers lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## quantize the embedded model, generate images, print where pictures and table are
	$(BIN)/dirotq $(ARGS)

sweep: $(VENV)/.installed-lab ## four ranks on six prompts, and an HTML report of them
	$(BIN)/dirotq sweep=rank rank=8,32,128,0.5 eval.prompts=6 calib.prompts=6 calib.records=48 \
	  hydra.sweep.dir=$(SWEEP) $(ARGS)
	$(BIN)/dirotq-report $(SWEEP) --format html --out $(SWEEP)/report

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

$(VENV)/.installed-lab: $(FILES) | $(VENV)/bin/pip
	$(PIP) install --quiet -c constraints.txt -e '.[lab]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(FILES) | $(VENV)/bin/pip
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-lab

$(BESIDE)/.installed: | $(VENV)/.installed-dev
	rm -rf $(VENV)/diffusers-*
	$(PIP) install --quiet --no-deps --target $(BESIDE) diffusers==$(DIFFUSERS)
	touch $@
