# `make test` and `make demo` work on a fresh machine: both create and use .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APP_VENV := .venv-app
TORCHAO_VENV := .venv-torchao
EXTRAS := test
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: setup demo demo-train test test-slow test-app test-torchao lint format clean

setup: $(VENV)/.installed

# torch is installed first and pinned: an open range may download a newer build, with gigabytes of GPU libraries. Where pip
# offers only CUDA builds of this version too, install a CPU build of torch into .venv first
$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]"
	touch $@

# Segments pictures of products that the embedded checkpoint was not trained on: tables and pictures in demo_output/
demo: setup
	$(BIN)/python -m examples.demo demo_output

# Trains on generated defects, evaluates, saves, reloads and segments: demo_train_output/
demo-train: setup
	$(BIN)/python examples/demo_train.py demo_train_output

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# ViT-L/14 at 518 x 518, and other tests that take minutes or gigabytes
test-slow: setup
	$(BIN)/python -m pytest -m slow

# The web page and the reports in a real browser. Needs Chromium and its driver: `apt-get install chromium chromium-driver` on Debian.
# Has its own environment, because Gradio needs an older Pillow
test-app: $(APP_VENV)/.installed
	@command -v chromedriver >/dev/null || { echo "chromedriver is missing: apt-get install chromium chromium-driver"; exit 1; }
	$(APP_VENV)/bin/python -m pytest -m "not slow" tests/space tests/reports

$(APP_VENV)/.installed: setup.py
	$(PYTHON) -m venv $(APP_VENV)
	$(APP_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(APP_VENV)/bin/python -m pip install --quiet -e ".[test,demo]" "selenium>=4.20"
	touch $@

# 8 bits with torchao. Has its own environment, because torchao without CUDA warns at every start
test-torchao: $(TORCHAO_VENV)/.installed
	$(TORCHAO_VENV)/bin/python -m pytest tests/test_quantization.py

$(TORCHAO_VENV)/.installed: setup.py
	$(PYTHON) -m venv $(TORCHAO_VENV)
	$(TORCHAO_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(TORCHAO_VENV)/bin/python -m pip install --quiet -e ".[torchao]" "pytest>=8.0"
	touch $@

clean:
	rm -rf $(VENV) $(APP_VENV) $(TORCHAO_VENV) build dist *.egg-info .pytest_cache .ruff_cache
