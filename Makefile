# Set-up needs Python >= 3.11 and a package index, nothing else.
PYTHON ?= python3
# Labelled audio for `make bench`: folders ljspeech and esc50.
DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
# Of images.
VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# With REPORTS=folder, tests leave JUnit and coverage reports there.
report = $(if $(REPORTS),--junitxml=$(REPORTS)/$(1).xml --cov=soundstage --cov=deployments --cov-report=xml:$(REPORTS)/coverage/$(1).xml)
UV := $(BIN)/uv
EXTRAS := --extra cpu --extra serve --extra weights --extra build --extra train --extra export --extra microphone --extra monitoring
COMPILE := $(UV) pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --quiet --custom-compile-command "make lock"

.PHONY: help run stop test test-slow test-cluster images scan sbom push train-sounds gate export-model canary promote verify-live rollback monitor test-observability test-nifi nifi-deploy nifi-status nifi-verify nifi-start nifi-stop nifi-export nifi-remove lint format bench lock clean

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

.venv-ship/done: cluster/requirements-ship.lock
	$(PYTHON) -m venv .venv-ship
	.venv-ship/bin/pip install --quiet --disable-pip-version-check --require-hashes -r cluster/requirements-ship.lock
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

test: $(VENV)/dev.done ## Tests that need only Python, in minutes
	$(BIN)/soundstage models fetch
	$(BIN)/pytest -n 2 -m "not slow" tests/unit tests/golden $(call report,unit)
	$(BIN)/pytest -m "not slow" tests/contract $(call report,contract)

test-slow: $(VENV)/dev.done ## The rest of them: hours of audio, lost replicas, new models live, training as its READMEs walk it
	$(BIN)/soundstage models fetch
	$(BIN)/pytest -n 2 -m slow tests/unit tests/golden tests/training $(call report,slow)
	$(BIN)/pytest -m slow tests/contract $(call report,slow-contract)

monitor: $(VENV)/run.done ## Prometheus, Alertmanager and the canary beside `make run`; ends with Ctrl-C
	$(BIN)/python -m monitoring.local

test-observability: $(VENV)/dev.done ## Dashboards, alerts, logs and traces against a real service, Prometheus and search engine
	$(BIN)/soundstage models fetch
	$(BIN)/python -m tests.observability.tools
	$(BIN)/pytest tests/observability -rs $(call report,observability)

test-cluster: $(VENV)/dev.done ## Manifests on a real API server and operator, several Ray nodes, the image's steps, Compose, Jenkins
	$(BIN)/soundstage models fetch
	$(BIN)/python -m tests.cluster.binaries
	$(BIN)/pytest tests/cluster $(call report,cluster)

# SIZE=small proves the same with fewer and shorter files, for CI. Other sizes: the head of tests/nifi/test_proofs.py.
nifi_small := SOUNDSTAGE_NIFI_FILES=30 SOUNDSTAGE_NIFI_LONGEST_S=120 SOUNDSTAGE_NIFI_FLOOD=200 SOUNDSTAGE_NIFI_THROUGHPUT=0 SOUNDSTAGE_NIFI_HOUR_S=300 SOUNDSTAGE_NIFI_BUSY_S=15
test-nifi: $(VENV)/dev.done ## The NiFi flow on a real NiFi and a real service; SIZE=small
	$(BIN)/soundstage models fetch
	-$(BIN)/python -m nifi.local assemble --install
	$(if $(filter small,$(SIZE)),$(nifi_small)) $(BIN)/pytest tests/nifi -s $(call report,nifi)

# The flow in a NiFi; docs/nifi.md. Each reads SOUNDSTAGE_NIFI_URL and so on; more options by ARGS='…'.
nifi-deploy: ## Bring NiFi to the flow that the code builds; ARGS='--set NAME=VALUE --start'
nifi-status: ## What runs, what waits, what went wrong, on one screen
nifi-verify: ## Whether NiFi has this flow, complete, valid, with all its parameters
nifi-start: ## Start the flow
nifi-stop: ## Stop the flow; files stay in their queues
nifi-export: ## Write nifi/flow.json and docs/nifi.svg
nifi-remove: ## Take the flow out of NiFi
nifi-deploy nifi-status nifi-verify nifi-start nifi-stop nifi-export nifi-remove: $(VENV)/dev.done
	@$(BIN)/python -m nifi $(@:nifi-%=%) $(ARGS)

images: ## Container images of the service, for CPUs and GPUs, and of TensorFlow Serving; VERSION=tag
	for target in cpu gpu exporter; do docker build -f cluster/Dockerfile --target $$target --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) -t soundstage-$$target:$(VERSION) . || exit 1; done
	docker build -f cluster/tensorflow_serving/Dockerfile --build-arg EXPORTER=soundstage-exporter:$(VERSION) -t soundstage-tensorflow-serving:$(VERSION) .
	docker tag soundstage-cpu:$(VERSION) soundstage:$(VERSION)

scan: .venv-ship/done ## Known weaknesses of what images hold; VERSION=tag
	.venv-ship/bin/pip-audit --require-hashes --disable-pip -r cluster/requirements-cpu.lock
	for image in soundstage soundstage-gpu soundstage-tensorflow-serving; do docker run --rm -v /var/run/docker.sock:/var/run/docker.sock \
		aquasec/trivy:0.67.2 image --quiet --exit-code 1 --severity CRITICAL,HIGH --ignore-unfixed $$image:$(VERSION) || exit 1; done

sbom: $(VENV)/run.done ## The wheel, and what is in the images (CycloneDX), into dist/; VERSION=tag
	$(BIN)/python -m hatchling build -t wheel -d dist
	for image in soundstage soundstage-gpu; do docker run --rm --entrypoint cat $$image:$(VERSION) /opt/soundstage/sbom.cdx.json \
		> dist/$$image-$(VERSION).cdx.json || exit 1; done

push: ## Images to IMAGE_REGISTRY=host/path; VERSION=tag
	for image in soundstage soundstage-gpu soundstage-tensorflow-serving; do docker tag $$image:$(VERSION) $(IMAGE_REGISTRY)/$$image:$(VERSION) && \
		docker push $(IMAGE_REGISTRY)/$$image:$(VERSION) || exit 1; done

# A model's way to the service; docs/operations.md. Each reads DATA, TEST_DATA, SOUNDSTAGE_REGISTRY, SERVICE_URL and so on.
train-sounds: ## Train the sound model on DATA=folder by RECIPE=file
gate: ## Stop where the new model is worse than the live one on TEST_DATA=folder
export-model: ## The new model for TensorFlow Serving
canary: ## Try the new model out on live requests
promote: ## Put the new model live
verify-live: ## Hold what is live against the gate's figure
rollback: ## Put the model before back
train-sounds gate export-model canary promote verify-live rollback: $(VENV)/dev.done
	$(BIN)/python -m cluster.delivery $@

format: $(VENV)/dev.done ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.done ## Measure speed and accuracy on this machine; writes benchmarks/results/
	$(BIN)/soundstage models fetch
	$(BIN)/python -m benchmarks --data $(DATA)

clean: ## Remove what was installed and built here
	rm -rf $(VENV) .run .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
