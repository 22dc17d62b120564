# Set-up needs Python >= 3.11 and a package index, nothing else.
PYTHON ?= python3
# Labelled audio for `make bench`: folders ljspeech and esc50.
DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
EXTRAS := --extra cpu --extra serve --extra weights --extra build --extra train --extra export --extra microphone --extra monitoring
COMPILE := $(UV) pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --quiet --custom-compile-command "make lock"

.PHONY: help run stop test monitor test-observability lint format bench lock clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

$(VENV)/uv.done:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	touch $@

$(VENV)/run.done: requirements.lock pyproject.toml | $(VENV)/uv.done
	$(UV) pip install --quiet --require-hashes -r requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/dev.done: requirements-dev.lock $(VENV)/run.done
	$(UV) pip install --quiet --require-hashes -r requirements-dev.lock
	touch $@

lock: $(VENV)/uv.done ## Resolve the requirement locks anew
	$(COMPILE) $(EXTRAS) -o requirements.lock
	$(COMPILE) $(EXTRAS) --extra dev --extra nifi -c requirements.lock -o requirements-dev.lock
	$(COMPILE) --extra cpu --extra serve --extra monitoring --extra nifi -c requirements.lock -o cluster/requirements-cpu.lock
	$(COMPILE) --no-config --extra gpu --extra serve --extra monitoring --extra nifi -c requirements.lock -o cluster/requirements-gpu.lock
	$(subst pyproject.toml,--group pyproject.toml:ship,$(COMPILE)) -o cluster/requirements-ship.lock

lint: $(VENV)/dev.done ## Style, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

run: $(VENV)/run.done ## Start the service on this machine and caption a sample clip
	$(BIN)/soundstage models fetch
	$(BIN)/python -m deployments.local up

stop: ## End what `make run` started, and nothing else
	@test ! -x $(BIN)/python || $(BIN)/python -m deployments.local down

test: $(VENV)/dev.done ## Every test that needs only Python
	$(BIN)/soundstage models fetch
	$(BIN)/pytest -n 2 tests/unit tests/golden
	$(BIN)/pytest tests/contract

monitor: $(VENV)/run.done ## Prometheus, Alertmanager and the canary beside `make run`; ends with Ctrl-C
	$(BIN)/python -m monitoring.local

test-observability: $(VENV)/dev.done ## Dashboards, alerts, logs and traces against a real service, Prometheus and search engine
	$(BIN)/soundstage models fetch
	$(BIN)/pytest tests/observability

format: $(VENV)/dev.done ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.done ## Measure speed and accuracy on this machine; writes benchmarks/results/
	$(BIN)/soundstage models fetch
	$(BIN)/python -m benchmarks --data $(DATA)

clean: ## Remove what was installed and built here
	rm -rf $(VENV) .run .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
