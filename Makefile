# `make test` and `make demo` are all a fresh machine needs: both make and use .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := test
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: setup demo demo-train test test-slow lint format clean

setup: $(VENV)/.installed

# torch first and pinned: an open range would fetch the newest build with gigabytes of GPU libraries
$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]"
	touch $@

# The embedded checkpoint on pictures of products it was not trained on: tables and pictures in demo_output/
demo: setup
	$(BIN)/python examples/demo.py --output_dir demo_output

# Trains on generated defects, evaluates, saves, reloads and segments: demo_train_output/
demo-train: setup
	$(BIN)/python examples/demo_train.py --output_dir demo_train_output

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest

# ViT-L/14 at 518 x 518 and other checks that take minutes or gigabytes
test-slow: setup
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
