# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint docs bench bench-gpu clean

demo: $(STAMP)
	$(BIN)/neuroprior demo --out .demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/step.py --batch 2
	$(BIN)/python benchmarks/step.py --what mae

# The same on a GPU, and what only a GPU has: under ten minutes.
bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/norm.py
	for batch in 1 4 16; do $(BIN)/python benchmarks/step.py --device cuda --pairs 20 --batch $$batch || exit 1; done
	$(BIN)/python benchmarks/step.py --device cuda --pairs 10 --size 96 --batch 4
	$(BIN)/python benchmarks/step.py --device cuda --pairs 10 --what mae --size 160
	$(BIN)/neuroprior bench --recipe fomo25 --subjects 10068 --set training.batch=16 --set training.workers=8

# torch first and by itself: its CPU build must be chosen before anything else asks for torch.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf .demo build dist site
