PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all slow lint clean

demo: .venv                      # train a storyteller: about 4 minutes on two CPU cores
	$(BIN)/python prepare.py
	$(BIN)/python train.py config/stories.py --overwrite=True
	$(BIN)/python sample.py --out_dir=out/stories

test: .venv/tests lint           # about 4 minutes on two cores
	$(BIN)/python -m pytest

test-all: .venv/tests lint       # the slow tests, too
	$(BIN)/python -m pytest -m ''

slow: .venv/tests                # only the slow tests
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

clean:                           # remove what can be made again; data and models stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
