# Every target makes what it needs, on a machine with Python >= 3.11, make and git.
# `make` alone lists the targets. Another interpreter: `make PYTHON=/path/to/python3.12 setup`.

SHELL       := /bin/sh
MAKEFLAGS   += --no-builtin-rules --warn-undefined-variables
VENV        := .venv
BIN         := $(VENV)/bin
PYTEST_ARGS ?=
BENCH_ARGS  ?=
CONFIG      ?= authz.yaml
OVERLAY     ?= k8s/overlays/central
# One more than there are cores: much of what the workers do is waiting, for two minutes in one test.
WORKERS     ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# The first interpreter that runs and is new enough. A version manager may leave shims on the path
# that exist but do not run, so each candidate is asked.
PYTHON_OK := -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON    ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	if $$p $(PYTHON_OK); then echo $$p; break; fi; done)

# loadgroup: the tests that share one Envoy stay in one worker.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# What the image holds, and what builds it: the same versions as in requirements.lock.
IMAGE_LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command 'make lock' -c requirements.lock

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup proto docs lint spire test test-deep e2e demo demo-everywhere bench migrate k8s-check k8s-apply audit lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.installed ## make .venv from requirements.lock (hash-checked) and install this project in it

proto: setup ## generate authz_server/_pb from protos/, and the messages that `envoy lint` reads by
	$(BIN)/python protos/generate.py
	$(BIN)/python protos/envoy_messages.py

docs: setup ## generate the reference pages of docs/ and the rendered Envoys from the code
	$(BIN)/python docs/generate.py
	$(BIN)/python envoy/generate.py

lint: setup ## formatting, lint, strict types, import contracts, generated files current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python envoy/generate.py --check

spire: setup ## build a real SPIRE for the tests, once, where Go is (some ten minutes; then seconds)
	@$(BIN)/python -m tests.spire.build || [ $$? = 3 ] # 3: no Go here, and said so

test: setup spire ## every suite but the deep ones: unit, property, conformance, e2e, faults (minutes)
	$(BIN)/python protos/generate.py --check
	$(PYTEST) -m 'not deep' $(PYTEST_ARGS)

test-deep: setup spire ## every suite with the long searches and soaks (an hour and more)
	HYPOTHESIS_PROFILE=deep $(PYTEST) --timeout 3600 $(PYTEST_ARGS)

e2e: setup spire ## only the tests with the real Envoy
	$(PYTEST) -m 'e2e and not deep' $(PYTEST_ARGS)

demo: setup ## a whole mesh on this machine, and a support case played through it (a minute)
	$(BIN)/authz-server demo

demo-everywhere: setup ## six Envoys of every kind, and one scenario file through all (a minute)
	$(BIN)/authz-server demo --everywhere

bench: setup ## print figures: decide, gRPC, through Envoy, beside a no-op server (never fails on a time)
	$(BIN)/python tests/bench/run.py $(BENCH_ARGS)

migrate: setup ## bring the shared ledger of CONFIG (default authz.yaml) to this version's schema
	$(BIN)/authz-server ledger migrate --config $(CONFIG)

k8s-check: setup ## build every overlay of k8s/, hold each object to schemas and rules (seconds)
	@$(BIN)/python -m k8s.check || [ $$? = 3 ] # 3: nothing here builds kustomizations, and said so

k8s-apply: setup ## apply OVERLAY (default k8s/overlays/central), once its policies pass their cases
	kubectl kustomize $(OVERLAY) | $(BIN)/python -m k8s.gate | kubectl apply --server-side -f -

audit: setup ## known advisories against the locked versions (asks the advisory service)
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements.lock

lock: | $(BIN)/uv ## resolve pyproject.toml into requirements.lock for every platform, with hashes
	cp requirements.lock $(VENV)/requirements.lock # keeps what need not change
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command 'make lock' -o $(VENV)/requirements.lock
	cmp -s $(VENV)/requirements.lock requirements.lock || cp $(VENV)/requirements.lock requirements.lock
	$(IMAGE_LOCK) --extra postgres --extra otel -o k8s/requirements.lock pyproject.toml
	echo hatchling | $(IMAGE_LOCK) -o k8s/build-requirements.lock -

clean: ## remove .venv, caches and build products
	rm -rf $(VENV) .cache dist build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find authz_server tests protos docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Only when there is none: resolving must not re-make an environment that a new lock is about to.
$(BIN)/uv:
	@$(MAKE) --no-print-directory $(VENV)/.deps

# Two stamps, so that an edit of pyproject.toml re-installs the project and not the world. A changed
# lock starts from an empty environment: what it no longer names must not stay importable.
$(VENV)/.deps: requirements.lock
	@if [ -z '$(PYTHON)' ] || ! $(PYTHON) $(PYTHON_OK); then \
		echo "make: need Python 3.11 or newer; found none under '$(or $(PYTHON),python3.11 .. python3)'." >&2; \
		echo "make: install it, or name it: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; fi
	@echo "setup: $(PYTHON) -> $(VENV), $$(grep -c '==' $<) locked packages (a minute or two)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "make: cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off \
		--require-hashes --requirement $<
	@touch $@

$(VENV)/.installed: $(VENV)/.deps pyproject.toml
	@$(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet \
		--no-deps --no-build-isolation --editable .
	@touch $@
