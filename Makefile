# Two commands on a fresh machine: `make demo` and `make test`. Each target installs what it needs: Python packages into
# .venv, system tools through apt-get where that is possible. What cannot be installed is left out, and reported.

PYTHON ?= python3
BIN := .venv/bin
BENCH_SIZE ?= 12
SEED ?= 1
# Half as many again as there are cores, at most 8: tests wait a third of their time.
WORKERS := $(shell cores=$$(nproc 2>/dev/null || echo 2); workers=$$((cores * 3 / 2)); echo $$((workers < 8 ? workers : 8)))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
FAST := -m 'not slow and not campaign' --ignore tests/vadpipe/lab

.PHONY: demo test test-fast cases test-minimum coverage check docs dist bench scoreboard campaign mutants tools test-tools clean

demo: .venv/installed tools
	$(BIN)/vadpipe lab demo build/demo

test: .venv/installed test-tools
	$(PYTEST)

# The product's tests without the slow ones: under a minute on two cores.
test-fast: .venv/installed test-tools
	$(PYTEST) $(FAST)

# Small inputs that once gave a wrong answer, through the real command.
cases: .venv/installed test-tools
	$(BIN)/python -m pytest tests/cases

# The fast tests with the lowest versions of the libraries that pyproject.toml allows.
test-minimum: build/minimum/installed test-tools
	build/minimum/bin/python -m pytest -n $(WORKERS) --dist worksteal $(FAST)

# Branch coverage of the product by the fast tests; `build/coverage` has it line by line.
coverage: .venv/installed test-tools
	$(PYTEST) $(FAST) --cov --cov-report=term --cov-report=html:build/coverage

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_layering.py tests/test_references.py

# The documentation as a site in build/site; a broken link or reference is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The sdist and the wheel, in build/dist.
dist: .venv/installed
	$(BIN)/python -m build --outdir build/dist

bench: .venv/installed tools
	$(BIN)/vadpipe bench path --size $(BENCH_SIZE)

# This project beside other tools and a floor in C: ratios, bench/releases.json and the pictures of the documentation.
# A version without pictures and peers: .venv/bin/python bench/scoreboard.py --only full,nothing --tools floor,vadpipe
SCOREBOARD ?= --size 2 --rounds 5
scoreboard: .venv/installed tools
	@bench/install_peers
	$(BIN)/python bench/scoreboard.py $(SCOREBOARD) --seed $(SEED) --json build/scoreboard.json --pictures docs --release

# Slow campaigns; `make test` runs a short version of each.
campaign: .venv/installed test-tools
	$(BIN)/python -m pytest -m campaign
	$(BIN)/python -m vadpipe.lab.vss_fuzz --minutes 20 --seed $(SEED)

# Mutation testing of the core, or of some of its files (tests/mutation.py names them, and their tests):
# make mutants CORE=vadpipe/repository/runs.py MUTANTS="--sample 100 --seed 1"
CORE ?= $(shell sed -n 's/^    "\([a-z_/]*\.py\)": .*/\1/p' tests/mutation.py)
mutants: .venv/installed
	set -e; for file in $(CORE); do $(BIN)/python tests/mutation.py $$file $(MUTANTS); done

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv || { apt-get install -y python3-venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

build/minimum/installed: pyproject.toml tests/minimum.py
	$(PYTHON) -m venv build/minimum
	$(PYTHON) tests/minimum.py > build/minimum/constraints.txt
	build/minimum/bin/python -m pip install --quiet --editable '.[keyring,lab,test]' -c build/minimum/constraints.txt
	touch $@

tools:
	@vadpipe/lab/install_tools

test-tools:
	@vadpipe/lab/install_tools tests

clean:
	rm -rf build .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
