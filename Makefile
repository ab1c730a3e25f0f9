# Every developer command, named once: people, hooks and CI call these.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# a process that must not store bytecode compiles the package each time that it starts
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env dev run test test-cov test-integration test-e2e test-slow test-docker test-all lint types imports check \
  bench lock docs wheel clean

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

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

# MLServer needs an older FastAPI than Prefect: an environment of its own, in which its tests start it
$(VENV)/.mlserver: deployments/mlserver-requirements.txt | $(BIN)/uv
	$(BIN)/python -m venv $(VENV)/mlserver
	$(BIN)/uv pip install --quiet --python $(VENV)/mlserver/bin/python --no-deps --compile-bytecode --require-hashes -r $< \
	  || $(VENV)/mlserver/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

run: env ## train, judge and promote a model on the shipped sample
	@$(BIN)/towline run configs/bike_demand.yaml

# ARGS replaces the folders and options of a target: make test ARGS="tests/unit/test_errors.py -k gate"
WORKERS ?= logical
# a process for each core: threads of their own would only wait for each other
PARALLEL = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -q --numprocesses $(WORKERS)
QUICK := --dist worksteal tests/integration tests/unit tests/test_architecture.py -m "not slow"

# tests also wait for servers and locks: one process more than there are cores
test test-cov test-slow: WORKERS = $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')

test: dev ## the quick tests of functions and parts; ARGS="tests/unit -k gate" for some
	@$(if $(ARGS),$(BIN)/pytest $(ARGS),$(PARALLEL) $(QUICK))

test-cov: dev ## the same with the coverage of each module
	@$(PARALLEL) --cov --cov-report=term $(or $(ARGS),$(QUICK))

test-integration: dev $(VENV)/.mlserver ## the slow tests of parts, and whole flows on a Prefect server
	@$(PARALLEL) --dist loadfile $(or $(ARGS),-m "slow or flows" tests/unit tests/integration tests/flows)

test-e2e: dev ## the commands as a user runs them
	@$(PARALLEL) --dist loadfile $(or $(ARGS),tests/e2e)

# files in this order, the longest first, so that all workers end at about the same time
SLOW = tests/e2e tests/flows $(shell grep -rl --include='test_*.py' 'mark\.slow' tests/integration tests/unit) \
  -m "slow or flows or e2e"

test-slow: dev $(VENV)/.mlserver ## both: all that `make test` leaves out, but containers
	@$(PARALLEL) --dist loadfile --no-loadscope-reorder $(or $(ARGS),$(SLOW))

test-docker: dev ## images and the Compose stack; needs a Docker engine
	@$(BIN)/pytest -q $(or $(ARGS),tests/docker)

test-all: test test-slow test-docker ## all tests

lint: dev ## style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: dev ## types, strict
	@$(BIN)/mypy

imports: dev ## which package may import which
	@$(BIN)/lint-imports

check: lint types imports ## lint, types and imports

bench: dev ## the scripts of the figures in README and docs
	@for script in overhead serving scorer swaps promotions prediction_log gate drift quality backtest kill image features validation; do \
	  $(BIN)/python benchmarks/$$script.py || exit 1; done

LOCKED := $(addprefix towline/release/runtime/,compiled sklearn catboost lightgbm xgboost) \
  $(addprefix deployments/,service-requirements uv-requirements)
# MLServer needs other versions of the rest
TRAINING_LIBRARIES := catboost|lightgbm|numpy|pandas|scikit-learn|skops|xgboost-cpu

lock: ## resolve the requirements anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra all --extra kubeflow pyproject.toml deployments/build-requirements.in -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra all --extra kubeflow --group dev --constraint requirements.txt \
	  pyproject.toml deployments/build-requirements.in \
	  -o requirements-dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group docs --constraint requirements-dev.txt -o requirements-docs.txt
	for kind in $(LOCKED); do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --constraint requirements-dev.txt --overrides towline/release/runtime/overrides.in \
	    $$kind.in -o $$kind.txt || exit 1; done
	grep -E '^($(TRAINING_LIBRARIES))==' requirements-dev.txt | tr -d '\\' \
	  | cat deployments/mlserver-requirements.in - \
	  | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --overrides towline/release/runtime/overrides.in - -o deployments/mlserver-requirements.txt

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
