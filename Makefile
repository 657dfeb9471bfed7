# Everything here needs only Python 3.11 or newer, git and make. The first
# target that needs it builds .venv from the locked requirements; no root, no
# running service.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Registries behind a company's own certificate authority work as they do for pip.
export UV_SYSTEM_CERTS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint format protos bench lock clean

help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Build .venv from the locked requirements

$(READY): pyproject.toml requirements/dev.txt requirements/models.txt requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Hedgerow needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (about a minute the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements/dev.txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements/models.txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: setup ## The whole story in under 6 minutes: train, serve, swap under load, roll back
	@$(BIN)/python -m hedgerow_local.demo

up: setup ## MLflow, control plane and two regions on this machine, until Ctrl-C
	@$(BIN)/hedgerow up

test: setup ## Every test that this machine can run
	@echo "Two files at a time, the slow ones first:"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/integration tests/conformance tests/unit
	@echo "The whole stack under load, and parts that die, one test after the other:"
	@$(BIN)/python -m pytest tests/e2e tests/chaos

lint: setup ## Style, types, import rules, protos
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports
	@cd protos && ../$(BIN)/buf lint
	@cd protos && ../$(BIN)/buf breaking --against baseline.binpb
	@$(BIN)/python protos/generate.py --check

format: setup ## Let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: setup ## Regenerate hedgerow_protos from the .proto files
	@$(BIN)/python protos/generate.py

bench: setup ## Measure this machine, 10 to 15 minutes; the page is var/bench/report.html
	@$(BIN)/hedgerow bench

lock: setup ## Resolve the requirements anew
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-deps requirements/models.in -o requirements/models.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-deps requirements/perf_analyzer.in -o requirements/perf_analyzer.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url requirements/uv.in -o requirements/uv.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url pyproject.toml --extra local --group test --group lint --no-emit-package hedgerow -o requirements/dev.txt

clean: ## Remove what the targets above made, var/ and .venv included
	rm -rf var .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
