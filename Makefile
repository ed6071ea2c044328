# Two commands on a fresh machine: `make demo` and `make test`. Everything they need is installed here: Python packages
# into .venv, system tools through apt-get where that is possible. What cannot be had is left out, and said.

PYTHON ?= python3
BIN := .venv/bin
BENCH_SIZE ?= 12
SEED ?= 1

.PHONY: demo test check bench campaign tools clean

demo: .venv/installed tools
	$(BIN)/vadpipe lab demo build/demo

test: .venv/installed tools
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

bench: .venv/installed tools
	$(BIN)/vadpipe bench path --size $(BENCH_SIZE)

# Slow campaigns; `make test` runs a short version of each.
campaign: .venv/installed tools
	$(BIN)/python -m pytest -m campaign
	$(BIN)/python -m vadpipe.lab.vss_fuzz --minutes 20 --seed $(SEED)

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv || { apt-get install -y python3-venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

tools:
	@vadpipe/lab/install_tools

clean:
	rm -rf build .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
