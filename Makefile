# Each target sets up .venv by itself on a machine with Python 3.11 or later and nothing else installed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# What is installed: for `make demo`; that and what tests need; that and what slow tests need besides.
DEMO := .venv/.installed-demo
STAMP := .venv/.installed
INTEGRATION := .venv/.installed-integration
UV := .venv/.uv
DOCS := .venv/.installed-docs
# uv takes a quarter of the time that pip takes. It looks for packages where pip is told to look, too.
INSTALL := UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --quiet --python $(BIN)/python
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
# Without the theme's notice of its successor.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
# Compiled modules are kept, whatever the shell says. A Python that compiles torch and diffusers anew at each start takes
# three times as long to start, and tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.venv/pycache

.PHONY: demo docs docs-serve test test-slow test-idle lint bench clean
.DELETE_ON_ERROR:

$(UV):
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	touch $@

$(DEMO): pyproject.toml $(UV)
	$(INSTALL) --editable '.[train,evaluate]'
	touch $@

$(STAMP): $(DEMO)
	$(INSTALL) --editable '.[train,evaluate,serve,otel,s3,ray,openvino,dev]'
	touch $@

$(INTEGRATION): $(STAMP)
	$(INSTALL) --editable '.[integration]'
	touch $@

# What the documentation needs: neither torch nor anything else that trains.
$(DOCS): pyproject.toml $(UV)
	$(INSTALL) --editable '.[serve,docs]'
	touch $@

demo: $(DEMO)
	$(BIN)/ddm-rt demo --out demo-out

# Into site/. A dead link, a page that no menu has, and a public name without a word about it end it.
docs: $(DOCS)
	$(MKDOCS) build -f docs/mkdocs.yml

docs-serve: $(DOCS)
	$(MKDOCS) serve -f docs/mkdocs.yml

test: $(STAMP) lint
	$(PYTEST) -m "not slow and not idle"

test-slow: $(INTEGRATION) $(DOCS)
	$(PYTEST) -m "slow and not idle" --durations=25

# What measures time. The machine must do nothing else meanwhile.
test-idle: $(INTEGRATION)
	$(BIN)/python -m pytest -m idle

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/balance.py

clean:
	rm -rf .venv demo-out site
