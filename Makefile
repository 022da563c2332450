# Every command of this repository; `make help` lists them. CI (.ci/run) calls the same targets.
#
#   UPSTREAM=x.y.z            another supported release of DSPy (upstream.toml) instead of the default one
#   DSPY_UPSTREAM_WHEEL=FILE  its wheel on disk, for machines without a network
#   PYTHON=python3.12         the interpreter of the environment
#   WORKERS=n                 processes that run the tests, 3 by default (many tests wait); 0 for none but pytest's own

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(UPSTREAM)
WORKERS ?= 3
PARALLEL := -n $(WORKERS) --dist worksteal
MYPY := $(abspath $(BIN))/mypy
unexport PYTHONDONTWRITEBYTECODE # the tests start many interpreters; compiling each module once saves 60 s of processor time

.DEFAULT_GOAL := help
.PHONY: help install dev demo test test-all lint types check docs pictures screenshots notebook changelog wheel
.PHONY: bench bench-speed bench-durability bench-race bench-regret test-upstream upgrade-upstream

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-17s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv and install this checkout in it, edits taking effect at once

$(STAMP): setup.py pyproject.toml upstream.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local,report,distributed,test]'
	@rm -f $(VENV)/.installed-*
	@touch $@

dev: install ## bring the composed package up to date with files added to or removed from dspy/
	@$(BIN)/python tools/compose.py

demo: dev ## a recorded search replayed, then a real program on a language model that runs here; no key needed
	$(BIN)/python -m examples.replay
	$(BIN)/python examples/demo.py

test: dev ## the tests, without those that take minutes (WORKERS=n processes)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: dev ## every test
	$(BIN)/python -m pytest $(PARALLEL)

lint: dev ## ruff, and the direction of imports between the wings of the package
	$(BIN)/ruff check .
	cd build/dev && $(abspath $(BIN))/lint-imports --config ../../pyproject.toml --cache-dir ../../.mypy_cache/imports

types: dev ## mypy, strict, on this fork's own modules
	cd build/dev && $(MYPY) --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p dspy.promptune -m dspy.teleprompt.mipro_optimizer_v2
	$(MYPY) tools benchmarks/import_time.py

check: lint types test ## what to run before a commit

docs: dev ## the documentation, into build/site (a warning is an error)
	$(BIN)/python -m nbconvert --to markdown --log-level ERROR docs/tutorial.ipynb
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: dev ## the documentation's pictures that come from a run
	$(BIN)/python tools/pictures.py

notebook: dev ## run docs/tutorial.ipynb on the embedded model and store its results (minutes)
	$(BIN)/python -m nbconvert --to notebook --execute --inplace docs/tutorial.ipynb

changelog: install ## what the next release's section says; VERSION=x.y.z writes it to CHANGELOG.md
	$(BIN)/towncrier build $(if $(VERSION),--yes --version $(VERSION),--draft --version next)

screenshots: dev ## pictures of a report, docs/images/report-*.png (STORAGE=FILE: of a stored run)
	PYTHONPATH=. $(BIN)/python docs/screenshots.py $(STORAGE)

wheel: install ## build dist/dspy-*.whl
	$(BIN)/python -m build --wheel

bench: dev ## import time, the cost of one proposal, calibration (minutes)
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python -m benchmarks.proposal
	$(BIN)/python -m benchmarks.calibration

bench-speed: dev ## whole compiles against DSPy's, and where jobs run (about an hour)
	$(BIN)/python benchmarks/compile_speed.py 2>/dev/null
	$(BIN)/python -m benchmarks.executors
	$(BIN)/python -m benchmarks.simulation

bench-durability: dev ## what kills and faults cost (long)
	$(BIN)/python -m benchmarks.durability
	$(BIN)/python -m benchmarks.replies

bench-race: dev ## the race alone beside TPE and races without a model, closed tables and products (an hour)
	$(BIN)/python -m benchmarks.race --seeds 20 --methods qei tpe-35 tpe-10 tpe-full thompson-blocks halving
	$(BIN)/python -m benchmarks.race --products --seeds 10 --methods qei tpe-35 tpe-10 halving

bench-regret: dev ## search quality on the recorded tables of benchmarks/data (hours; QUICK=1: some minutes)
	$(BIN)/python -m benchmarks.regret $(if $(QUICK),--seeds 5 --methods qei-async tpe-35 random-35 --results build/quick --plots build/quick)
	$(BIN)/python -m benchmarks.overview $(if $(QUICK),--results build/quick --out build/quick/overview.png)

test-upstream: install ## DSPy's own suite on this fork and on unmodified DSPy (DSPY_TESTS=DIR, or git clones them)
	$(BIN)/python tools/upstream_suite.py

upgrade-upstream: install ## VERSION=x.y.z: pin another release, show what changed under the overlay, run both suites
	$(BIN)/python tools/upgrade.py $(VERSION)
	$(MAKE) test
	$(MAKE) test-upstream
