# Each target sets up .venv by itself on a machine with Python 3.11 or later and nothing else installed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow lint bench clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,evaluate,serve,ray,openvino,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/ddm-rt demo --out demo-out

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/balance.py

clean:
	rm -rf .venv demo-out
