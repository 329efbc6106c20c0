# make setup | demo | test | check | bench | clean        each works in a fresh clone; setup runs once, and when pyproject changes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
# With a GPU the newest torch, which brings the Triton that fits; without one, a pair that is known to work.
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null),torch,torch==2.13.0 triton==3.7.1)
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))

.PHONY: setup demo test check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77"
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable ".[test,dev,demo]"
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# TESTS="tests/house -k options" chooses; pytest-xdist spreads over WORKERS processes.
test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

check: setup
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m mla_compiler.bench $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
