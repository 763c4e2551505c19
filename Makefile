# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: demo test bench soak fuzz peers audit lint format clean

.venv/.run: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
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

demo: .venv/.run ## publish a firmware, start sandbox and function, update five devices; REGISTRY=1: out of a registry
	@$(BIN)/python -m fleet_fn demo $(if $(REGISTRY),--registry)

test: .venv/.dev .venv/.wheels ## every test; under five minutes
	@tests/install-peers
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

bench: .venv/.dev ## whether a rollout draws as many devices as it says, and what a pod takes; SEED=7: other devices
	@$(BIN)/python -m tests.bench $(if $(SEED),--seed $(SEED))

fuzz: .venv/.fuzz ## hostile bytes for each reader of them; FUZZ_SECONDS=60: for each target; TARGET=layer: one of them
	@$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),600) $(TARGET)

soak: .venv/.dev ## 2,000 devices at once, with faults on every wire; ten minutes; ARGS='--devices 100': fewer
	@$(BIN)/python -m tests.soak $(ARGS)

peers: .venv/.dev ## real device code, in Rust, against sandbox and function; needs cargo; ARGS='--board plain': one of them
	@$(BIN)/python -m tests.peers $(ARGS)

audit: .venv/.audit ## what is known against the dependencies, by PyPI's advisories
	@$(BIN)/pip-audit --strict --requirement requirements.txt

lint: .venv/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
