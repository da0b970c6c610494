# Every target sets up its own virtual environment first; it is rebuilt when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# One process for each core, at most 8. Each takes tests from the other when its own are done.
PARALLEL ?= -n logical --maxprocesses 8 --dist worksteal

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo quick test check bench slow docs notebooks pictures matrix dist clean

help:  ## print the targets
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[test,tutorials]"
	touch $@

demo: $(READY)  ## train and query a small model; ARGS="..." reaches the command
	$(BIN)/python -m energyppl demo $(ARGS)

quick: $(READY)  ## run the tests of shapes, messages and layout: about a minute on two cores
	$(BIN)/python -m pytest $(PARALLEL) tests/contract $(ARGS)

test: $(READY)  ## run all tests but the slow ones: about five minutes on two cores; ARGS="-k name" chooses
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

check: $(READY)  ## lint, format, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p energyppl -p tests.benchmarks
	$(BIN)/lint-imports --no-logo

bench: $(READY)  ## run the benchmarks
	$(BIN)/python -m tests.benchmarks $(ARGS)

slow: $(READY)  ## run the tests that take minutes
	$(BIN)/python -m pytest $(PARALLEL) -m slow $(ARGS)

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[docs]"
	touch $@

docs: $(VENV)/.docs  ## build the documentation site in build/site/html; ARGS=--run runs the tutorials, half an hour
	$(BIN)/python tutorials/site/build.py $(ARGS)

notebooks: $(READY)  ## write the tutorials as notebooks into build/notebooks
	$(BIN)/python tutorials/site/percent.py build/notebooks

pictures: $(VENV)/.docs  ## draw the pictures that the repository keeps anew, by running every tutorial
	$(BIN)/python tutorials/site/build.py --run --fresh
	for path in tutorials/images/[0-9]*.png; do cp "build/site/made/$${path##*/}" "$$path" || exit 1; done
	$(BIN)/python tutorials/site/readme_picture.py

matrix:  ## run the tests of contract and usage on every Python and the oldest and newest torch; ARGS="3.12 -k name" chooses
	.ci/matrix $(ARGS)

dist: $(READY)  ## build the wheel and the sdist, check them, and install both on every Python that there is
	.ci/dist

clean:  ## remove what the other targets made, the virtual environment too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
