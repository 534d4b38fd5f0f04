# Set-up, tests, demo and checks in one place: `make test` and `make demo` work on a fresh clone.
#
# Without an active virtual environment .venv is made and used. Variables that you may set:
#   TORCH    what pip installs when torch is missing, e.g. TORCH="torch --index-url …" for another build of it
#   PYTHON   the interpreter that makes .venv
#   PYTEST_ARGS, DEMO_ARGS   appended to the commands of `make test` and `make demo`

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
# The version that CI tests; any from 2.6 on will do. On Linux, PyPI's build of it brings CUDA along (several GB).
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
DEMO_ARGS ?=

VENV := $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What was done is noted in the environment itself, so that a new one starts from nothing.
STAMPS := $(VENV)/.moelens
SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

.PHONY: demo
demo: $(STAMPS)/installed ## answer a dozen questions with a small MoE model (downloads 90 MB, once)
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

.PHONY: test
test: $(STAMPS)/installed ## run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: check
check: $(STAMPS)/developing ## lint, types, formatting, structure
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/python -m pytest -q tests/structure

.PHONY: format
format: $(STAMPS)/developing ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

# The sanitized build lies apart (build/sanitize) and comes first on the path; pytest is started as a program, since
# `python -m` would put this folder before it. Leaks are not looked for: the interpreter itself never frees everything.
SANITIZERS = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
EMULATED := build/sanitize-emulated

.PHONY: sanitize
sanitize: sanitize-cpu sanitize-cuda ## run the kernels' tests under AddressSanitizer and UBSan

.PHONY: sanitize-cpu
sanitize-cpu: $(STAMPS)/installed
	MOELENS_SANITIZE=1 MOELENS_ISAS=native $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	$(SANITIZERS) PYTHONPATH=build/sanitize/lib $(BIN)/pytest -q tests/ops $(PYTEST_ARGS)

# The instructions of AMX, which sanitizers don't see, are plain C++ here: it runs on any processor.
.PHONY: sanitize-tiles
sanitize-tiles: $(STAMPS)/installed ## test the kernels for AMX, emulated, under AddressSanitizer and UBSan
	MOELENS_SANITIZE=1 MOELENS_EMULATE_TILES=1 $(BIN)/python setup.py -q build --build-base build/tiles --build-lib build/tiles/lib
	$(SANITIZERS) PYTHONPATH=build/tiles/lib $(BIN)/pytest -q tests/ops -k amx $(PYTEST_ARGS)

# The GPU's kernels under emulation; and once more under ThreadSanitizer, where each CUDA thread is one of its own.
.PHONY: sanitize-cuda
sanitize-cuda: $(STAMPS)/installed
	MOELENS_SANITIZE=1 MOELENS_CUDA_EMU=1 $(BIN)/python setup.py -q build --build-base $(EMULATED) --build-lib $(EMULATED)/lib
	$(SANITIZERS) MOELENS_CUDA_EMU_MODULE="$$(echo $(EMULATED)/lib/moelens/_cuda_emu*.so)" \
	  $(BIN)/python -m pytest -q tests/cuda/test_cuda_rows.py tests/cuda/test_cuda_products.py tests/cuda/test_cuda_kv.py
	$(BIN)/python tests/cuda/sanitized.py thread $(EMULATED)/thread

.PHONY: sanitize-threads
sanitize-threads: ## stress the worker team under ThreadSanitizer
	mkdir -p build
	$(CXX) -std=c++17 -O1 -g -fno-omit-frame-pointer -fsanitize=thread -Wall -Wextra -Icsrc/cpu \
	  tests/native/team_stress.cpp csrc/cpu/team.cpp -pthread -o build/team_stress
	TSAN_OPTIONS=halt_on_error=1 build/team_stress

.PHONY: pictures
pictures: $(STAMPS)/developing ## draw the pictures of docs/performance_model.md
	$(BIN)/python bench/paper_grid.py --model --pictures docs

.PHONY: wheel
wheel: $(STAMPS)/build-requires ## build a wheel in dist/
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean: ## delete what was built, except .venv
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find moelens -name '*.so' -delete

# --- set-up -----------------------------------------------------------------------------------------------------------
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "moelens needs Python 3.10 or newer; set PYTHON=…")'
	$(PYTHON) -m venv .venv

$(STAMPS): | $(BIN)/python
	mkdir -p $@

$(STAMPS)/torch: | $(STAMPS)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install --quiet $(TORCH)
	touch $@

$(STAMPS)/build-requires: pyproject.toml | $(STAMPS)
	sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr , ' ' | xargs $(PIP) install --quiet
	touch $@

# An environment may have been used with another checkout since: its path is part of what was done.
.PHONY: FORCE
$(STAMPS)/checkout: FORCE | $(STAMPS)
	@[ "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" ] || echo "$(CURDIR)" > $@

$(STAMPS)/installed: pyproject.toml setup.py $(SOURCES) $(STAMPS)/torch $(STAMPS)/build-requires $(STAMPS)/checkout
	$(PIP) install --quiet --no-build-isolation --editable '.[demo,test]'
	touch $@

$(STAMPS)/developing: $(STAMPS)/installed
	$(PIP) install --quiet --no-build-isolation --editable '.[demo,test,dev]'
	touch $@
