# Needs only make and Python 3.11 or later with pip; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check doctest backends slow clean

demo: $(STAMP)
	$(BIN)/dprp demo --folder runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "backend and not slow"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

clean:
	rm -rf .venv runs build *.egg-info

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 to 3.13 is needed, found %d.%d; set PYTHON=' % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)
