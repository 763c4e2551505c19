# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The locks are valid for each Python from 3.11 on and each platform. uv asks the index that pip asks; no lock names it.
COMPILE := UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-https://pypi.org/simple}}" \
	.venv/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench plots pictures soak fuzz peers audit sbom lock lint format clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.venv/.run: requirements-tools.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --require-hashes -r requirements-tools.lock
	$(PIP) install --quiet --no-deps -e .
	touch $@

.venv/.dev: .venv/.run requirements-dev.lock
	$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	touch $@

.venv/.fuzz: .venv/.dev
	$(PIP) install --quiet -e '.[fuzz]'
	touch $@

.venv/.audit: .venv/.dev
	$(PIP) install --quiet -e '.[audit]'
	touch $@

# In an environment of its own, so that a lock that cannot be installed can be renewed.
.venv/.uv:
	$(PYTHON) -m venv .venv/uv
	.venv/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv~=0.13.9'
	touch $@

# Likewise: its dependencies are none of ours.
.venv/.sbom: .venv/.dev
	$(PYTHON) -m venv .venv/sbom
	.venv/sbom/bin/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom~=7.5' 'uv~=0.13.9'
	touch $@

# What tests install into environments of their own: the function's dependencies, and what `func` puts around it.
.venv/.wheels: .venv/.run
	$(PIP) download --quiet -d .venv/wheels --require-hashes -r requirements-tools.lock
	$(PIP) download --quiet -d .venv/wheels -r requirements.txt 'setuptools>=77' func-python hatchling
	touch $@

# Each worker reads all tests. pytest compiles them here once; from a cold start all workers would do it at the same time.
.venv/.read: .venv/.dev $(shell find tests -name '*.py')
	-@$(BIN)/python -m pytest --collect-only -qq >/dev/null
	@touch $@

demo: .venv/.run ## update devices here; REGISTRY=1: from a registry; CONSOLE=1: look
	@$(BIN)/python -m fleet_fn demo $(if $(REGISTRY),--registry) $(if $(SUBSCRIBE),--subscribe) $(if $(CONSOLE),--console)

# What one process compiled is kept for the others, whatever a container's environment says.
test: export PYTHONDONTWRITEBYTECODE =
test: .venv/.dev .venv/.wheels .venv/.read ## run every test; under five minutes
	@tests/install-peers
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

bench: .venv/.dev ## measure the function and check rollouts; SEED=7: other devices
	@$(BIN)/python -m tests.bench $(if $(SEED),--seed $(SEED))

pictures: .venv/.dev ## take docs/images/*.png of the console, in a browser
	@tests/install-peers
	@$(BIN)/python -m tests.screenshots docs/images

plots: .venv/.dev ## draw docs/*.svg of benchmarks, renew docs/scale.md's tables
	$(BIN)/python -m tests.bench.plot docs/rollout-simulation.svg
	$(BIN)/python -m tests.bench.capacity_plot docs/capacity.svg
	$(BIN)/python -m tests.bench.capacity docs/scale.md

fuzz: .venv/.fuzz ## feed hostile bytes to each reader; FUZZ_SECONDS=60, TARGET=layer
	@$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),600) $(TARGET)

soak: .venv/.dev ## run 2,000 faulty devices, ten minutes; ARGS='--devices 100'
	@$(BIN)/python -m tests.soak $(ARGS)

peers: .venv/.dev ## drive updates through real peers; ARGS='mosquitto hawkbit'
	@tests/install-peers
	@$(BIN)/python -m tests.peers $(ARGS)

audit: .venv/.audit ## look up advisories about the dependencies
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements-tools.lock

sbom: .venv/.sbom ## list the images' packages in build/*.cdx.json
	@$(BIN)/python -m tests.sbom

lock: .venv/.uv ## renew the locked dependencies, within their ranges
	$(COMPILE) -o requirements.lock requirements.txt
	$(COMPILE) -o requirements-tools.lock --constraints requirements.lock --extra tools --extra build pyproject.toml
	$(COMPILE) -o requirements-dev.lock --constraints requirements-tools.lock \
		--extra tools --extra build --extra sandbox --extra tracing --extra dev pyproject.toml

lint: .venv/.dev ## run ruff and mypy, check who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: .venv/.dev ## let ruff correct and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
