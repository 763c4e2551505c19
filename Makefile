# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench soak fuzz peers audit lint format clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.venv/.run: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[sandbox,tracing,dev]'
	touch $@

.venv/.fuzz: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	touch $@

.venv/.audit: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]'
	touch $@

# What tests install into environments of their own: the function's dependencies, and what `func` puts around it.
.venv/.wheels: .venv/.run
	$(BIN)/python -m pip download --quiet --disable-pip-version-check -d .venv/wheels -r requirements.txt \
		pip 'setuptools>=77' func-python hatchling
	touch $@

demo: .venv/.run ## update simulated devices here; REGISTRY=1: out of an OCI registry
	@$(BIN)/python -m fleet_fn demo $(if $(REGISTRY),--registry)

test: .venv/.dev .venv/.wheels ## run every test; under five minutes
	@tests/install-peers
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

bench: .venv/.dev ## measure the function and check rollouts; SEED=7: other devices
	@$(BIN)/python -m tests.bench $(if $(SEED),--seed $(SEED))

fuzz: .venv/.fuzz ## feed hostile bytes to each reader; FUZZ_SECONDS=60, TARGET=layer
	@$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),600) $(TARGET)

soak: .venv/.dev ## run 2,000 faulty devices, ten minutes; ARGS='--devices 100'
	@$(BIN)/python -m tests.soak $(ARGS)

peers: .venv/.dev ## run device code in Rust; needs cargo; ARGS='--board plain'
	@$(BIN)/python -m tests.peers $(ARGS)

audit: .venv/.audit ## look up advisories about the dependencies
	@$(BIN)/pip-audit --strict --requirement requirements.txt

lint: .venv/.dev ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev ## let ruff correct and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
