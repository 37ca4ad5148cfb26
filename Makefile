# sutdol: everything starts here. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
STUDIO := .venv-label-studio
BIN := $(VENV)/bin
# Half of the tests' time is waiting: two workers need little more than half of it (which tests go together: tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: help setup demo test faults test-fast lint bench pictures docs lock clean tools

help:  ## list what make can do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.ready $(STUDIO)/.ready  ## make both virtual environments (ours, and Label Studio's own)

demo: setup  ## watch the loop close on real data, about five minutes
	$(BIN)/sutdol demo

test: setup  ## every test, real Label Studio and real training included
	$(PYTEST)

faults: setup  ## the long chaos suites: more seeds, PostgreSQL, the real Label Studio
	$(BIN)/python -m pytest -m faults

test-fast: $(VENV)/.ready  ## the tests that take under a minute
	$(PYTEST) -m "not slow"

lint: $(VENV)/.ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready  ## print every benchmark's figures beside their targets
	@for f in tests/benchmarks/[a-z]*.py; do echo "== $$f"; $(BIN)/python -m $$(echo $${f%.py} | tr / .) || exit 1; done
	@echo "== tests/benchmarks/learning"; $(BIN)/python -m tests.benchmarks.learning

pictures: setup  ## take pictures of the console into docs/, from a running demo
	$(BIN)/python -m tests.pictures

docs:  ## where the documentation is
	@echo "README.md and docs/*.md; the API's own description is served at /schema"

lock:  ## resolve the dependencies anew: versions and hashes, no addresses
	uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header -q -o requirements.lock
	uv pip compile deploy/label-studio.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header -q -o deploy/label-studio.lock

clean:  ## remove the virtual environments and caches
	rm -rf $(VENV) $(STUDIO) .pytest_cache .mypy_cache .ruff_cache

tools:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: sudo apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version); name another one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "python3-venv is missing: sudo apt-get install python3-venv"; exit 1; }
	@command -v git >/dev/null || { echo "git is missing: sudo apt-get install git"; exit 1; }

# One lock, installed without resolving again: this is what keeps a single cv2 in the environment.
# uv when it can be had (seconds), else pip (minutes).
define install
	$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install -q --disable-pip-version-check "uv>=0.5" 2>/dev/null || echo "uv cannot be had, pip takes some minutes"
	@if [ -x $(1)/bin/uv ]; then $(1)/bin/uv pip install -q --compile-bytecode --python $(1)/bin/python --no-deps --require-hashes -r $(2); \
	else $(1)/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $(2); fi
endef

$(VENV)/.ready: requirements.lock pyproject.toml | tools
	$(call install,$(VENV),requirements.lock)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m serving.web.assets
	touch $@

$(STUDIO)/.ready: deploy/label-studio.lock | tools
	$(call install,$(STUDIO),deploy/label-studio.lock)
	touch $@
