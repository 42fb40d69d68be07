# Every target starts from a clean clone: it makes .venv and installs what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
# Stamps: .venv holds what pyproject.toml and constraints.txt ask for; redone when either changes.
INSTALLED := .venv/.regard
INSTALLED_TESTS := .venv/.regard-tests

OLD_PYTHON := regard needs Python 3.11 or later, $(PYTHON) is %d.%d; name a newer one: make PYTHON=python3.12

.PHONY: help setup demo test format check-format lint types check clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 14

setup: $(INSTALLED)  ## make .venv and install regard into it

demo: $(INSTALLED)  ## train a small translator from nothing and show what it attends to
	$(BIN)/regard demo $(ARGS)

test: $(INSTALLED_TESTS)  ## run the tests (ARGS="-m long" for those that take minutes)
	$(BIN)/python -m pytest $(ARGS)

format: $(INSTALLED_TESTS)  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check-format: $(INSTALLED_TESTS)  ## fail where `make format` would rewrite something
	$(BIN)/ruff format --check .

lint: $(INSTALLED_TESTS)  ## look for mistakes in the code
	$(BIN)/ruff check .

types: $(INSTALLED_TESTS)  ## check the types
	$(BIN)/mypy

check: check-format lint types test  ## all that CI runs

clean:  ## delete .venv and every cache
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find regard tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "regard needs Python 3.11 or later, $(PYTHON) was not found" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "$(OLD_PYTHON)" % v[:2])'
	"$(PYTHON)" -m venv .venv

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(INSTALLED_TESTS): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(INSTALLED) $@
