# Needs only make and Python 3.11 or later with pip; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check clean

demo: $(STAMP)
	$(BIN)/dprp demo --folder runs/demo

test: $(STAMP)
	$(PYTEST) -m "not slow"
	KERAS_BACKEND=jax $(PYTEST) -m "backend and not slow"

# Everything but the studies marked `long`.
test-all: $(STAMP)
	$(PYTEST) -m "not long"
	KERAS_BACKEND=jax $(PYTEST) -m "backend and not long"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build *.egg-info

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 to 3.13 is needed, found %d.%d; set PYTHON=' % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)
