PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all slow lint clean

demo: .venv                      # a storyteller from nothing, in a few minutes on two CPU cores
	$(BIN)/python prepare.py
	$(BIN)/python train.py --overwrite=True --out_dir=out/demo
	$(BIN)/python sample.py --out_dir=out/demo

test: .venv/tests lint           # at most 4 minutes on two cores
	$(BIN)/python -m pytest

test-all: .venv/tests lint
	$(BIN)/python -m pytest -m ''

slow: .venv/tests                # only what test leaves out
	$(BIN)/python -m pytest -m slow

lint: .venv/tests
	$(BIN)/ruff check .

.venv: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or later is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.venv/tests: .venv/installed tests/requirements.txt
	$(PIP) -r requirements.txt -r tests/requirements.txt
	touch $@

clean:                           # what can be made again; trained models and data stay
	rm -rf .venv .pytest_cache .ruff_cache
