# `make quickstart` and `make test` set themselves up in .venv. PYTHON and TORCH choose the interpreter and the torch build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test check bench clean

quickstart: $(READY)
	$(BIN)/tokencredit quickstart $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/signals.py $(ARGS)
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache

# torch goes first and alone: a range would fetch another build of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
