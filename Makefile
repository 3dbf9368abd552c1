# Two commands do everything: `make demo` and `make test`. What they need is installed into one cache folder outside of
# the checkout, keyed by what it was made from, so a second checkout finds it ready.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env lint format test test-unit test-cluster test-lab test-chart test-stories test-faults test-pure demo lab lab-down generate

PYTHON ?= python3
CACHE := $(or $(MODELROLLOUT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/modelrollout)
ENV_KEY := $(shell { command -v sha256sum >/dev/null && sha256sum constraints.txt || shasum -a 256 constraints.txt; } | cut -c1-12)
VENV := $(CACHE)/venv-$(ENV_KEY)
PY := $(VENV)/bin/python
export PYTHONPATH := $(CURDIR)/operator:$(CURDIR)
export PATH := $(VENV)/bin:$(PATH)
export MODELROLLOUT_CACHE := $(CACHE)

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

env: $(VENV)/.ready  ## the Python environment, pinned by constraints.txt
$(VENV)/.ready:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $$($(PYTHON) -V) was found: name another one with PYTHON=…"; exit 1; }
	@echo "Installing the Python environment into $(VENV) (once)"
	@mkdir -p $(CACHE) && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; x = p["optional-dependencies"]; print("\n".join(p["dependencies"] + x["lab"] + x["dev"]))' > $(VENV)/requirements.txt
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt -c constraints.txt
	@touch $@

lint: env  ## ruff, mypy --strict, the layers, and whether generated files are current
	@ruff check . && ruff format --check --quiet . && mypy && lint-imports --no-cache && $(PY) -m modelrollout.api.generate --check

format: env  ## rewrite in the project's format
	@ruff check --fix --quiet . ; ruff format --quiet .

generate: env  ## crds/ and docs/api.md from the pydantic models
	@$(PY) -m modelrollout.api.generate

test: env  ## everything: unit, cluster, lab, chart; in three streams, as most of the time is spent in waiting
	@$(PY) -m lab build
	@echo "Three streams of tests, each printed at its end: unit tests and chart; real traffic and faults; stories of one cluster"
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target test-pure test-faults test-stories

# Faults that take long are not told beside the other stories, so that these streams end at about the same time.
FAULTS := tests/cluster/test_kills.py tests/cluster/test_fifty.py

test-pure: env
	@$(PY) -m pytest tests/unit tests/chart $(ARGS)

test-faults: env
	@$(PY) -m pytest tests/lab $(FAULTS) $(ARGS)

test-stories: env
	@$(PY) -m pytest tests/cluster $(FAULTS:%=--ignore=%) $(ARGS)

test-unit: env  ## pure code only, seconds
	@$(PY) -m pytest tests/unit $(ARGS)

test-cluster: env  ## against a real API server
	@$(PY) -m pytest tests/cluster $(ARGS)

test-lab: env  ## with real traffic
	@$(PY) -m pytest tests/lab $(ARGS)

test-chart: env  ## the Helm chart
	@$(PY) -m pytest tests/chart $(ARGS)

demo: env  ## a better model is promoted, a wrong one is rolled back; KEEP=1 leaves all running
	@$(PY) -m lab demo $(if $(KEEP),--keep)

lab: env  ## a real Kubernetes, proxy and Prometheus on this machine
	@$(PY) -m lab up

lab-down: env  ## stop it
	@$(PY) -m lab down $(if $(FOLDER),--folder $(FOLDER))
