# `make demo` and `make test` do everything on a fresh machine: they create .venv, install, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

$(VENV)/installed: setup.cfg requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m experiments.demo

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m 'not slow' -n 2

test-slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info
