# make demo     all five stages on the embedded phantom, from nothing to a report
# make test     the test suite; make test TORCH=2.9 runs it with that version, in a virtual environment of its own
# make test-cuda  the tests on a machine with a GPU, and a table of its rates to paste into an issue
# make lint     format, lint, types, the floors of the package
# make docs     the documentation, in docs/_build/html
# make dist     wheel and source distribution, and a try of the wheel in an environment of its own
# make venv     the virtual environment alone, with everything that the others need

PYTHON ?= python3
TORCH ?=
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c $(VENV)/constraints.txt
DEMO := runs/demo

.PHONY: help venv demo test test-cuda lint docs dist

help:
	@sed -n 's/^# make /make /p' Makefile

venv: $(VENV)/.tools

# A stamp is written after its installation has succeeded, so that one cut short is taken up again.
$(VENV)/.runtime: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python %d.%d is too old: $(PYTHON). Use 3.11 or newer: make PYTHON=python3.11." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),sed 's/^torch==.*/torch==$(TORCH).*/; /^torchvision==/d',cat) constraints.txt > $(VENV)/constraints.txt
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.tools: $(VENV)/.runtime
	$(PIP_INSTALL) -e '.[dev,docs]'
	@touch $@

demo: $(VENV)/.runtime
	$(BIN)/python train_vqvae.py --run $(DEMO) --data phantom --preset demo --overwrite
	$(BIN)/python extract_codes.py --run $(DEMO) --overwrite
	$(BIN)/python train_prior.py --run $(DEMO) --level top --overwrite
	$(BIN)/python train_prior.py --run $(DEMO) --level bottom --overwrite
	$(BIN)/python sample.py --run $(DEMO) --num 64 --label diagnosis=healthy --out $(DEMO)/samples-healthy
	$(BIN)/python sample.py --run $(DEMO) --num 64 --label diagnosis=atrophy --out $(DEMO)/samples-atrophy
	$(BIN)/python evaluate.py --run $(DEMO)
	@echo
	@echo "report:  $(DEMO)/report/index.html"
	@echo "samples: $(DEMO)/samples-healthy/grid.png and $(DEMO)/samples-atrophy/grid.png"

# Several processes of one thread each: files of tests are shared out among them, in their order, so that those of a
# few long tests do not come last.
test: $(VENV)/.tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-cuda: $(VENV)/.tools
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "error: PyTorch finds no CUDA device. Install a driver, or a PyTorch for CUDA.")'
	@$(BIN)/python -m pytest; failed=$$?; $(BIN)/python benchmarks/device.py --device cuda && exit $$failed

lint: $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.tools
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

dist: $(VENV)/.tools
	rm -rf dist build
	$(PIP_INSTALL) build
	$(BIN)/python -m build
	$(PYTHON) -m venv dist/try
	dist/try/bin/python -m pip install --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && try/bin/vqvae2 --version && try/bin/vqvae2 train-vqvae --run run --data phantom --preset demo --dry-run
	rm -rf dist/try dist/run
