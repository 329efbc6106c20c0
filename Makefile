# make setup | demo | test | check | bench | sanitize | clean        each works in a fresh clone; setup runs once, and when pyproject changes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
# With a GPU the newest torch, which brings the Triton that fits; without one, a pair that is known to work.
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null),torch,torch==2.13.0 triton==3.7.1)
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))

.PHONY: setup demo test check bench sanitize clean

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

# On a GPU: every kernel under CUDA's sanitizer. Each tensor has memory of its own, or a neighbour's would hide a stray access.
# A virtual environment's python may start another one, which is the one to watch, and takes minutes to come to the GPU.
SANITIZER := compute-sanitizer --error-exitcode 1 --target-processes all --launch-timeout 600
EVERY_KERNEL := -m pytest -q -m gpu tests/lowering_triton/test_gpu_every_kernel.py

sanitize: setup
	$(BIN)/python $(EVERY_KERNEL)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool memcheck $(BIN)/python $(EVERY_KERNEL)
	$(SANITIZER) --tool racecheck $(BIN)/python $(EVERY_KERNEL)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
