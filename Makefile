# Taskforge. `make` lists the targets; each sets up what it needs in .venv, nothing outside this folder is touched.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.taskforge-dev
PYTEST := $(BIN)/python -m pytest -q
# Tests of daemons wait more than they compute. A file stays with one worker: its tests may share a daemon.
PARALLEL = -n $(or $(WORKERS),3) --dist loadfile --no-loadscope-reorder
# Tests start hundreds of interpreters, and each would compile everything again.
unexport PYTHONDONTWRITEBYTECODE
PROTOS := $(wildcard protos/taskforge/v1/*.proto)
GENERATE = $(BIN)/python -m grpc_tools.protoc -Iprotos \
  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
  --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## set up .venv with everything, for development too

# The stamp is newer than pyproject.toml when the environment fits it.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Taskforge needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: demo
demo: $(STAMP) ## see it work: a GitHub release, verified, stored, run, watched, and kill -9 survived
	@$(BIN)/python examples/demo.py

.PHONY: test
test: $(STAMP) ## run all tests
ifeq ($(ARGS),)
	@failed=0; \
	$(PYTEST) $(PARALLEL) --ignore=tests/crash || failed=1; \
	$(PYTEST) tests/crash || failed=1; `# alone: a kill proves more when many runs are in flight` \
	exit $$failed
else
	@$(PYTEST) $(PARALLEL) $(ARGS)
endif

.PHONY: test-fast
test-fast: $(STAMP) ## run the tests that need no daemon process
	@$(PYTEST) $(PARALLEL) --ignore=tests/crash $(ARGS)

.PHONY: lint
lint: $(STAMP) ## ruff, mypy, import directions, protos
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/buf lint protos

.PHONY: format
format: $(STAMP) ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: protos
protos: $(STAMP) ## generate the Python stubs
	@$(call GENERATE,protos)

.PHONY: protos-check
protos-check: $(STAMP) ## fail when the stubs are not those of the protos
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(call GENERATE,"$$scratch"); \
	diff -ru --exclude='*.proto' --exclude='__init__.py' --exclude='__pycache__' --exclude=py.typed \
	  protos/taskforge "$$scratch/taskforge" \
	  || { echo 'The stubs are not those of the protos: run `make protos` and commit the result.' >&2; exit 1; }

.PHONY: docs
docs: $(STAMP) ## write the pages that are made from code
	@$(BIN)/python -m taskforgectl.reference > docs/cli.md.new && mv docs/cli.md.new docs/cli.md
	@$(BIN)/python -m taskforged.testing.states_doc > docs/states.md.new && mv docs/states.md.new docs/states.md
	@$(BIN)/python -m tools.grpc_reference > docs/grpc.md.new && mv docs/grpc.md.new docs/grpc.md
	@$(BIN)/python -m tools.language_reference > docs/language-keys.md.new && mv docs/language-keys.md.new docs/language-keys.md

.PHONY: bench
bench: $(STAMP) ## measure, each figure beside its bare cost and its budget (ARGS="--quick" for a short look)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-growth
bench-growth: $(STAMP) ## measure with a million stored runs, and how figures grow
	@$(BIN)/python -m benchmarks --growth $(ARGS)

.PHONY: bench-peer
bench-peer: $(STAMP) ## measure another engine beside this one (PEER=dbos, prefect, temporal, restate, huey)
	@$(BIN)/python -m benchmarks.peer $(or $(PEER),--help) $(ARGS)

# Tests that have a larger size than CI has time for.
SOAK = $(addprefix tests/,crash/test_kill9.py crash/test_kill9_semantics.py crash/test_kill9_triggers.py \
  crash/test_kill9_ticks.py crash/test_kill9_queued.py triggers/test_clock_turned.py \
  semantics/test_stopped_daemon.py semantics/test_poison.py crash/test_watches.py triggers/test_deaf_senders.py \
  storage/test_backups.py storage/test_long_load.py rpc/test_open_streams.py kills)

.PHONY: soak
soak: $(STAMP) ## the gates of docs/testing.md for longer (CYCLES=200)
	@TASKFORGE_TEST_CYCLES=$(or $(CYCLES),200) $(PYTEST) -s -p no:randomly --timeout=3600 $(SOAK)

.PHONY: torture
torture: $(STAMP) ## taskforgectl torture with several seeds (MINUTES=10 SEEDS="1 2 3")
	@for seed in $(or $(SEEDS),1 2 3); do $(BIN)/taskforgectl torture --minutes $(or $(MINUTES),10) --seed $$seed; done

.PHONY: simulate
simulate: $(STAMP) ## simulated runs of engine and host (RUNS=2000, FIRST=0), or one seed again (HOST=17 or ENGINE=17)
	@PYTHONPATH=tests $(BIN)/python -m simulation --runs $(or $(RUNS),2000) --first $(or $(FIRST),0) \
	  $(if $(HOST),--host $(HOST)) $(if $(ENGINE),--engine $(ENGINE))

.PHONY: mutants
mutants: $(STAMP) ## put faults into copies of the sources; each must be noticed by its test (ONLY=text)
	@PYTHONPATH=tests $(BIN)/python -m mutants $(if $(ONLY),--only "$(ONLY)")

.PHONY: nightly
nightly: $(STAMP) ## 100,000 simulated runs, the rule machines at full size, all seeded faults
	@$(MAKE) simulate RUNS=$(or $(RUNS),100000)
	@TASKFORGE_TEST_EXAMPLES=$(or $(EXAMPLES),2000) $(PYTEST) --timeout=7200 tests/host/test_slots_model.py tests/simulation/test_attempts_model.py
	@$(MAKE) mutants

.PHONY: clean
clean: ## remove what was made here, .venv too
	@rm -rf $(VENV) build dist benchmarks/results benchmarks/.peers .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
