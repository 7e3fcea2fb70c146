# One command each; every target makes the environment that it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: test slow lint notebooks demo docs release clean

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow and not notebook" --doctest-modules tests ffjord_kit

slow: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m slow tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

notebooks: $(READY)
	$(BIN)/python -m pytest -q -n auto -m notebook tests

demo: $(READY)
	$(BIN)/ffjord-kit demo --out demo --force

docs: $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going $(SPHINXOPTS) -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

release:
	.ci/release $(PYTHON)

$(READY): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
