# Everything a user or a machine runs. Only Python (3.11 to 3.13) and make are assumed.
PYTHON ?= python3
VENV := .venv
# Processes of the test suite, one thread each.
WORKERS ?= 2
# Of make torture. A seed repeats the choices of a run.
KILLS ?= 100
SEED ?=
BIN := $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Compile UMAP once, 40 s, and not in the first run that needs it.
COMPILE = $(BIN)/python -c "import numpy; from gradcamo_assets.profiles.umap import umap_embedding; umap_embedding(numpy.eye(20))"

.PHONY: demo test test-fast test-slow test-cluster test-cluster-faults torture test-install ui lint docs

demo: $(VENV)/.installed
	$(BIN)/gradcamo demo

ui: $(VENV)/.installed
	$(BIN)/gradcamo ui

test: lint
	$(PYTEST) -m "not slow and not cluster and not torture"

# All tests below Dagster, for a change that is being made.
test-fast: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not cluster and not torture" --ignore gradcamo_assets_tests/defs

# Killed processes, real servers and trainings of several processes: before a release, and after a change of these.
test-slow: $(VENV)/.installed-test
	$(PYTEST) -m "slow and not cluster"

# Two plates on a Ray cluster of two nodes, with Postgres (Debian's package postgresql), MLflow and an S3 server.
test-cluster: $(VENV)/.installed-test-cluster
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m "cluster and not slow"

# The same while machines and servers fail.
test-cluster-faults: $(VENV)/.installed-test-cluster
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m "cluster and slow"

# Random kills of the whole pipeline, while a reader never stops.
torture: $(VENV)/.installed-test
	TORTURE_KILLS=$(KILLS) TORTURE_SEED=$(SEED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m torture

# Both wheels, each in a fresh environment; it downloads what they depend on.
test-install: $(BIN)/python
	$(BIN)/python packages/try_wheels.py

# The documentation site, in site/; a broken link fails it.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open site/index.html"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f'Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}. Try: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	$(COMPILE)
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[test]"
	$(COMPILE)
	touch $(VENV)/.installed $@

$(VENV)/.installed-test-cluster: pyproject.toml constraints.txt | $(VENV)/.installed-test
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[test,cluster,test-cluster]"
	touch $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	touch $(VENV)/.installed $@
