# Every developer command, named once: people, hooks and CI call these.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help env dev run test lint types imports check bench lock docs wheel clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

env: $(VENV)/.run ## the environment, from hash-locked requirements
dev: $(VENV)/.dev ## the same with the developers' tools

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "towline needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps
# uv installs four times as fast; where it cannot be had, pip does the same
$(BIN)/uv: deployments/uv-requirements.txt | $(VENV)/bin/python
	-$(PIP) --require-hashes -r $<
	@touch $@

$(VENV)/.run: requirements.txt pyproject.toml | $(BIN)/uv
	$(UV) --compile-bytecode --require-hashes -r requirements.txt || $(PIP) --require-hashes -r requirements.txt
	$(UV) --no-build-isolation --editable . || $(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(UV) --compile-bytecode --require-hashes -r requirements-dev.txt || $(PIP) --require-hashes -r requirements-dev.txt
	@touch $@

run: env ## train, judge and promote a model on the shipped sample
	@$(BIN)/towline run configs/bike_demand.yaml

test: dev ## the tests; ARGS="tests/unit -k gate" for some
	@$(BIN)/pytest $(ARGS)

lint: dev ## style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: dev ## types, strict
	@$(BIN)/mypy

imports: dev ## which package may import which
	@$(BIN)/lint-imports

check: lint types imports ## lint, types and imports

bench: dev ## what the README's figures rest on
	@for script in overhead serving scorer swaps prediction_log gate drift quality backtest kill image; do \
	  $(BIN)/python benchmarks/$$script.py || exit 1; done

LOCKED := $(addprefix towline/release/runtime/,compiled sklearn catboost lightgbm xgboost) \
  $(addprefix deployments/,service-requirements uv-requirements)

lock: ## resolve the requirements anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra all pyproject.toml deployments/build-requirements.in -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra all --group dev --constraint requirements.txt pyproject.toml deployments/build-requirements.in \
	  -o requirements-dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group docs --constraint requirements-dev.txt -o requirements-docs.txt
	for kind in $(LOCKED); do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --constraint requirements-dev.txt $$kind.in -o $$kind.txt || exit 1; done

$(VENV)/.docs: requirements-docs.txt $(VENV)/.run
	$(UV) --require-hashes -r requirements-docs.txt || $(PIP) --require-hashes -r requirements-docs.txt
	@touch $@

docs: $(VENV)/.docs ## the documentation site in site/, with its links checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

wheel: dev ## the wheel
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove the environment and the store
	@if [ -x $(BIN)/towline ]; then $(BIN)/towline ui --stop; fi
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find mlruns -mindepth 1 -not -name README.md -delete
