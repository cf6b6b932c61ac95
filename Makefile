# Each target only calls a tool; `make help` lists them. Nothing here needs root.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# COMPILED=1: what a request passes through, compiled from the same sources (needs a C compiler and two minutes once).
COMPILED ?=
VENV ?= $(if $(COMPILED),.venv-compiled,.venv)
BIN := $(VENV)/bin
PYTHON ?=
ARGS ?=
SEED ?= 1
RUNS ?= 200
PYTEST := $(BIN)/python -m pytest

##@ Use

.PHONY: up
up: $(VENV)/.installed ## start a durable 3-node cluster here and stay with it (ARGS="--nodes 5 --dir D")
	@exec $(BIN)/kv up $(ARGS)

.PHONY: compiled
compiled: ## the compiled build, in an environment of its own; then: make up COMPILED=1
	@$(MAKE) COMPILED=1 .venv-compiled/.installed
	@.venv-compiled/bin/kv version

.PHONY: down
down: $(VENV)/.installed ## stop the cluster that `make up ARGS=--detach` left running
	@exec $(BIN)/kv down $(ARGS)

##@ In containers

IMAGE ?= kvstore:0.1.0
BASE_IMAGE ?=
# What the image can do beside being a node; EXTRAS= leaves the applications out.
EXTRAS ?= apps
NODES ?= 3
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
APPS ?=
COMPOSE_RUN = KV_IMAGE=$(IMAGE) KV_CLUSTER_NODES=$(NODES) $(COMPOSE) $(if $(filter 5,$(NODES)),--profile five) \
    $(if $(APPS),--profile apps)
COMPOSE_ALL = $(COMPOSE_RUN) --profile five --profile apps --profile cli

.PHONY: image
image: $(VENV)/.made ## build the image from wheels made here (BASE_IMAGE=kvstore-base:bookworm without a registry)
	rm -rf build/wheels
	$(MAYBE_COMPILED) $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir build/wheels '.[$(EXTRAS)]' 'pip>=25.1'
	docker build --network none --tag $(IMAGE) --build-arg VERSION=$(lastword $(subst :, ,$(IMAGE))) \
	    --build-arg EXTRAS=$(EXTRAS) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) .

.PHONY: compose-up
compose-up: ## start a cluster of containers and wait until all are ready (NODES=5, APPS=1 for shortener and ratelimit)
	@$(COMPOSE_RUN) up -d
	@for i in $$(seq 120); do \
	    want=$$(($(NODES) $(if $(APPS),+ 2))); ready=0; for id in $$($(COMPOSE_RUN) ps -q); do \
	        [ "$$(docker inspect --format '{{.State.Health.Status}}' $$id)" = healthy ] && ready=$$((ready + 1)); done; \
	    if [ $$ready = $$want ]; then echo "$$ready containers are ready"; exit 0; fi; sleep 0.5; done; \
	echo "not ready within a minute:" >&2; $(COMPOSE_RUN) logs --tail 5 >&2; exit 1

.PHONY: compose-down
compose-down: ## stop the containers; the volumes stay
	@$(COMPOSE_ALL) down

.PHONY: compose-erase
compose-erase: ## stop the containers and delete their data
	@$(COMPOSE_ALL) down --volumes

##@ Work on it

.PHONY: test
test: $(VENV)/.tools ## all tests: unit, property, contract, simulated clusters, real processes
	$(PYTEST) -n 2 --dist loadgroup $(ARGS)

.PHONY: test-compiled
test-compiled: ## the quick and the real-process tests, on the compiled build
	@$(MAKE) COMPILED=1 test-installed ARGS='$(ARGS)'

.PHONY: test-installed
test-installed: $(VENV)/.tools
	@# Not `python -m pytest`, which would find the sources of this directory first.
	$(BIN)/pytest -n 2 --dist loadgroup -m "not sim and (e2e or not slow)" $(ARGS)

.PHONY: check
check: $(VENV)/.tools ## format, lint, floors, types, spelling, tidiness, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python
	$(BIN)/codespell
	$(PYTEST) -q -p no:randomly tests/test_tidy.py tests/test_docs.py

.PHONY: fmt
fmt: $(VENV)/.tools ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: sim
sim: $(VENV)/.tools ## seeded clusters in one process: make sim SEED=7 RUNS=1
	$(BIN)/python -m kvstore.sim --seed $(SEED) --runs $(RUNS) $(ARGS)

.PHONY: jepsen
jepsen: $(VENV)/.tools ## break real node processes: make jepsen ARGS="-w register -n partitions --time 60"
	$(BIN)/jepsen-lite run $(ARGS)

.PHONY: e2e
e2e: $(VENV)/.tools ## only the tests that start real node processes
	$(PYTEST) -n 2 --dist loadgroup -m e2e $(ARGS)

.PHONY: cover
cover: $(VENV)/.tools ## branch coverage, with the floors below which it fails
	$(BIN)/coverage erase
	@# The one left out asserts what a process has loaded, and coverage loads things of its own.
	$(PYTEST) -n 2 --dist loadgroup --cov --cov-report= $(ARGS) \
	    --deselect tests/cli/test_kv_help.py::test_get_loads_nothing_it_does_not_need
	@# Never lowered. One figure cannot say that core and wire are whole, so each floor has its own.
	$(BIN)/coverage report --fail-under=92
	$(BIN)/coverage report --include='kvstore/core/*,kvstore/wire/*' --fail-under=100
	$(BIN)/coverage report --include='kvstore/storage/*,kvstore/client/*' --fail-under=98

.PHONY: bench
bench: $(VENV)/.tools ## our cluster beside etcd and Redis, when they are installed
	$(BIN)/python bench/compare.py $(ARGS)

.PHONY: clean
clean: ## remove the environment and every cache; leaves ./kv-data alone
	rm -rf $(VENV) .venv-compiled .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* \
	    htmlcov dist build
	find kvstore cli jepsen-lite tests bench -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	    /^[a-z0-9-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- the environment: each step leaves a stamp, so that the second `make up` installs nothing -----
$(VENV)/.made:
	@# An environment that somebody else made is taken as it is. Nothing is deleted here: VENV may name anything.
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "using $(VENV)"; exit 0; fi; \
	py=; for p in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	    if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then py=$$p; break; fi; done; \
	if [ -z "$$py" ]; then echo "kvstore needs Python 3.11 or newer: apt-get install python3 (or: make PYTHON=/path/to/python3)" >&2; exit 1; fi; \
	if ! "$$py" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$py cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; fi; \
	echo "making $(VENV) with $$("$$py" --version)"; \
	"$$py" -m venv $(VENV)
	@# Dependency groups came with pip 25.1.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

MAYBE_COMPILED = $(if $(COMPILED),HATCH_BUILD_HOOK_ENABLE_CUSTOM=1)
ifdef COMPILED
$(VENV)/.installed: $(shell find kvstore cli jepsen-lite scripts/compiled.py -name '*.py') pyproject.toml $(VENV)/.made
	@echo "compiling kvstore into $(VENV): a minute or two"
	@$(MAYBE_COMPILED) $(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@touch $@
else
$(VENV)/.installed: pyproject.toml $(VENV)/.made
	@echo "installing kvstore into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@
endif

$(VENV)/.tools: $(VENV)/.installed
	@echo "installing the test and check tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@
