# make reproduce   the whole pipeline on the embedded tiny world (a CPU, minutes); PROFILE= TASK= MODEL= SEED= choose another run
# make test        all tests
# make test-vllm   the tests that need vLLM, with its CPU build, in an environment of its own
# make test-deepspeed   the tests of sharding with DeepSpeed's ZeRO-3, on a CPU
# make test-smol        the tests of SmolLM2-135M, a small real model that pip can get
# make test-trackers    the tests of curves in trackio and wandb, which stay on this machine
# make test-box    a whole study as a rented box runs it, killed and resumed, and the doctor with two processes; minutes
# make figures     every table and figure again from results/ alone (installs no torch)
# make study       the committed results: all arms and seeds of PROFILE, then publish to results/; ARMS= SEEDS= choose others,
#                  TRANSFER=1: also models trained on the other task, CONTROLS=1: also retries without the model's own reflection
# make docs        the docs site in _site/, from the notebooks as they are
# make notebooks   every notebook executed in place, with the committed results
# make lint        formatting, linting, types, imports that only run downward
# make export      the modules of r3_repro/ from the notebooks

PROFILE ?= tiny
TASK ?=
MODEL ?=
SEED ?= 0
SEEDS ?= 0 1 2
ARMS ?=
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
DEEPSPEED ?= .venv-deepspeed
TRACKERS ?= .venv-trackers
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Threads that wait for work by spinning cost more than they bring at this size.
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

.PHONY: reproduce test test-vllm test-deepspeed test-smol test-trackers test-box figures study docs notebooks lint export clean

reproduce: $(VENV)/.core
	$(BIN)/r3-repro reproduce --profile "$(PROFILE)" --task "$(TASK)" --model "$(MODEL)" --seed $(SEED)

# Three processes for two cores: kills, servers and queues are waited for. Compiled modules are kept, for all of them.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-vllm: $(VLLM_VENV)/.done
	$(VLLM_VENV)/bin/python -c "import vllm"
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/on_vllm

test-deepspeed: $(VENV)/.dev $(DEEPSPEED)/.done
	R3_DEEPSPEED=$(DEEPSPEED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/on_deepspeed

test-smol: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/on_smol

test-trackers: $(VENV)/.dev $(TRACKERS)/.done
	R3_TRACKERS=$(TRACKERS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/on_trackers

test-box: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/on_box

figures: $(VENV)/.base
	$(BIN)/r3-repro figures

study: $(VENV)/.core
	$(BIN)/r3-repro study --profile "$(PROFILE)" --task "$(TASK)" --model "$(MODEL)" --seeds "$(SEEDS)" $(if $(ARMS),--arms "$(ARMS)") $(if $(TRANSFER),--transfer) $(if $(CONTROLS),--controls)

docs: $(VENV)/.dev
	@rm -rf _docs/html
	$(BIN)/sphinx-build -q -E -W --keep-going -d _docs/trees -c docs nbs _docs/html
	@rm -rf _site && mv _docs/html _site
	@echo "docs: _site/index.html"

notebooks: $(VENV)/.dev
	$(BIN)/python docs/run_notebooks.py

lint: $(VENV)/.dev
	$(BIN)/ruff check nbs tests benchmarks docs setup.py
	$(BIN)/ruff format --check nbs tests benchmarks docs setup.py
	$(BIN)/lint-imports
	$(BIN)/mypy

# nbdev writes relative imports where an import is on one line; generated modules import in one way, sorted.
export: $(VENV)/.dev
	$(BIN)/nbdev-export
	$(BIN)/ruff check --quiet --config export.toml --fix --unsafe-fixes r3_repro
	$(BIN)/nbdev-clean

clean:
	rm -rf runs/* _site .pytest_cache .ruff_cache .mypy_cache

# One environment that grows: base (stored results to figures), core (mine, train, evaluate), dev (tests, docs).
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -q --editable .
	touch $@

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing (some minutes the first time)"
	$(PIP) -q --editable ".[core]"
	touch $@ $(VENV)/.base

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing (some minutes the first time)"
	$(PIP) -q --editable ".[dev]"
	touch $@ $(VENV)/.core $(VENV)/.base

# A complete list, since resolving takes longer than installing; the package itself comes without its needs for the same reason.
$(VLLM_VENV)/.done: requirements-vllm.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --requirement requirements-vllm.txt --editable .
	touch $@

$(DEEPSPEED)/.done: requirements-deepspeed.txt $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-deps --target $(DEEPSPEED) --upgrade --requirement requirements-deepspeed.txt
	touch $@

$(TRACKERS)/.done: requirements-trackers.txt constraints.txt $(VENV)/bin/python
	$(PIP) --no-deps --target $(TRACKERS) --upgrade --requirement requirements-trackers.txt
	touch $@
