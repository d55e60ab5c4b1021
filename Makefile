# Two commands on a fresh machine: `make demo` and `make test`. Both make the environment first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types suite format lock clean

demo: $(READY)
	$(BIN)/mercer demo --out demo

test: lint types suite

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

suite: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt requirements-dev.txt hatch_build.py src/mercer/machine/core.cpp src/mercer/machine/build.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -r requirements-dev.txt -e ".[app]"
	touch $(READY)

# rewrite constraints.txt from the present environment, without the local build tag of torch and without GPU libraries
lock: $(READY)
	head -n 2 constraints.txt > constraints.new
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | grep -viE '^(nvidia|triton|cuda)' | sort -f >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
