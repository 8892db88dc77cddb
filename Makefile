# gpusched, for people who work on it. Needs Python 3.11 or newer, make and git; everything else goes into .venv.
# Settings: PYTHON=python3.12  VENV=.venv  CUDA=1 (fetch torch with its CUDA libraries)  ARGS="-k name" (handed on)
#           WORKERS=3 (processes that share the tests; most of them wait most of the time)
#           EXTRA=all (test with Lightning, transformers, peft… as well; without them those tests are skipped)

VENV ?= .venv
EXTRA ?= test
WORKERS ?= 3
BIN   = $(VENV)/bin
NEEDS = pyproject.toml constraints.txt .ci/install

export PYTHON CUDA
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test check bench soak lock clean help

demo: $(VENV)/.installed-torch ## watch a training job being preempted, saved and resumed (simulated GPUs, under a minute)
	@$(BIN)/gpusched demo $(ARGS)

test: $(VENV)/.installed-$(EXTRA) ## run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(VENV)/.installed-$(EXTRA) ## style, types and the rules of who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p gpusched
	@$(BIN)/python -m pytest tests/unit/test_import_rules.py

bench: $(VENV)/.installed-all ## run the benchmarks (minutes; results depend on the machine)
	@set -e; for bench in tests/bench/bench_*.py; do echo ">> $$bench"; $(BIN)/python $$bench $(ARGS); done

soak: $(VENV)/.installed-all ## preempt and kill training hundreds of times and compare every end bit for bit (most of an hour)
	@set -e; for soak in tests/soak/soak_*.py; do echo ">> $$soak"; $(BIN)/python $$soak $(ARGS); done

# What is pinned stays unless something needs it newer; ARGS="--upgrade" or ARGS="--upgrade-package ruff" moves pins.
# Without find-links, so that the pins of the CUDA libraries are there for machines with GPUs, and with plain torch
# versions: a local build (2.13.0+cpu) satisfies ==2.13.0, but not the other way round.
lock: $(VENV)/.installed-test ## pin everything that is needed in constraints.txt
	@cp constraints.txt $(VENV)/constraints.new
	@env -u UV_FIND_LINKS $(BIN)/python -m uv pip compile -q --universal --python-version 3.11 --extra all \
	  --no-header --no-annotate $(ARGS) pyproject.toml -o $(VENV)/constraints.new
	@sed 's/^\(torch==[0-9.]*\)+[^ ]*/\1/' $(VENV)/constraints.new > $(VENV)/constraints.txt
	@cp $(VENV)/constraints.txt constraints.txt

# Installed once, and again when what is needed changes. The test extra contains torch.
$(VENV)/.installed-torch: $(NEEDS)
	@sh .ci/install $(VENV) torch
	@touch $@

$(VENV)/.installed-test: $(NEEDS)
	@sh .ci/install $(VENV) test
	@touch $@ $(VENV)/.installed-torch

$(VENV)/.installed-all: $(NEEDS)
	@sh .ci/install $(VENV) all
	@touch $@ $(VENV)/.installed-torch $(VENV)/.installed-test

clean: ## remove .venv and everything that tools leave behind
	@test ! -e $(VENV) || test -e $(VENV)/pyvenv.cfg || { echo "$(VENV) is no virtual environment: not removed"; exit 1; }
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r a b; do printf '%-12s %s\n' "$$a" "$$b"; done
