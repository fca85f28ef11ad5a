# Everything a developer or a user types. Needs Python 3.11 and make; installs the rest into .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench-train bench-descent bench-secure check format results docs clean

demo: .venv/installed  ## train, linearize, run private inference, write runs/demo/report.html
	$(BIN)/reluctant demo --out runs/demo

test: .venv/installed  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench-train: .venv/installed  ## cost of a training step beside the plain one; writes benchmarks/out/training.json
	$(BIN)/python benchmarks/training.py

bench-descent: .venv/installed  ## candidates scored a second beside whole passes; writes benchmarks/out/descent.json
	$(BIN)/python benchmarks/descent.py

bench-secure: .venv/installed  ## calibrates, then predicted against measured private inference: benchmarks/out/secure.json, tables of docs/costs.md
	mkdir -p benchmarks/out
	$(BIN)/reluctant calibrate --out benchmarks/out/prices.json
	$(BIN)/python benchmarks/secure.py --prices benchmarks/out/prices.json --page docs/measured-costs.md

check: .venv/installed  ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	    { echo "Python 3.11 is needed (the secure engine has no build for another); say which: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

results: .venv/installed  ## results/README.md from the records beside it
	$(BIN)/python -c 'from pathlib import Path; from reluctant.records import load_records; from reluctant.report import results_page; Path("results/README.md").write_text(results_page(load_records(["results"])))'

docs: .venv/docs  ## docs/_build/html; docs/bench.md, docs/cifar100.md and pictures anew from records and recipes
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
