# Needs only make and Python 3.11 or later with pip; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check clean

demo: $(STAMP)
	$(BIN)/dprp demo --folder runs/demo

test: $(STAMP)
	$(PYTEST) -m "not slow and not long"
	KERAS_BACKEND=jax $(PYTEST) -m "backend and not slow and not long" tests/layers tests/conversion

# `make test`, and then what takes longer: whole ways end to end, more cases of the same, and all
# that runs on JAX.
test-all: test
	$(PYTEST) -m "slow and not long"
	KERAS_BACKEND=jax $(PYTEST) -m "backend and not long"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build *.egg-info

# Nothing is taken whose hash the lock does not name, setuptools included: nothing else is built with.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 to 3.13 is needed, found %d.%d; set PYTHON=' % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)
