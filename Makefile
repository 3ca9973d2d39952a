# `make demo` and `make test` do everything on a fresh machine: they create .venv, install, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_BENCH := .venv-bench

.PHONY: demo docs test test-slow lint bench bench-gpu bench-aot soak clean

$(VENV)/installed: setup.cfg requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m experiments.demo

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m 'not slow' -n 3 --dist loadfile

# Pages of the API, from the docstrings.
docs: $(VENV)/installed-test
	$(BIN)/python docs/build.py build/docs

test-slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow --timeout 3600

# An environment of its own: TRL needs torchvision, beside which transformers' models do not import
# with a torch for CPUs, and the tests need them.
$(VENV_BENCH)/installed: setup.cfg requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV_BENCH)
	$(VENV_BENCH)/bin/pip install --quiet --constraint requirements.txt --editable '.[bench]'
	touch $@

bench: $(VENV_BENCH)/installed
	$(VENV_BENCH)/bin/python -m experiments.bench.update --json runs/bench/update_cpu.json
	$(VENV_BENCH)/bin/python -m experiments.bench.logits --json runs/bench/logits_cpu.json
	$(VENV_BENCH)/bin/python -m experiments.bench.padding --json runs/bench/padding.json
	$(VENV_BENCH)/bin/python -m experiments.bench.rollout --json runs/bench/rollout_cpu.json
	$(VENV_BENCH)/bin/python -m experiments.bench.attention --json runs/bench/attention_cpu.json
	$(VENV_BENCH)/bin/python -m experiments.bench.trl --json runs/bench/trl_cpu.json
	$(VENV_BENCH)/bin/python -m experiments.bench.scaling --json runs/bench/scaling_cpu.json \
		--plot runs/bench/scaling_cpu.png

# Takes the Python that is there, with JAX for its GPU: set PYTHON=.venv/bin/python for that of .venv.
# GPU_PRESET=gpu_smoke runs the same in a minute with tiny shapes, on a CPU too.
GPU_PRESET ?= gpu_2b
bench-gpu:
	$(PYTHON) -m experiments.bench.update --preset $(GPU_PRESET) \
		--json runs/bench/update_$(GPU_PRESET).json
	$(PYTHON) -m experiments.bench.rollout --preset $(GPU_PRESET) \
		--json runs/bench/rollout_$(GPU_PRESET).json
	$(PYTHON) -m experiments.bench.attention --preset $(GPU_PRESET) \
		--json runs/bench/attention_$(GPU_PRESET).json

# What 2B and 7B take on TPUs and GPUs, by their compilers; hours. Rows that are there stay.
$(VENV)/installed-aot: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[aot-tpu,aot-cuda]'
	touch $@

bench-aot: $(VENV)/installed-aot
	$(BIN)/python -m experiments.bench.aot

# Faults, floods and strangers' files, at random; hours. The records go where the committed ones are.
SOAK := completions rows images hub models report flips disk kills
soak: $(VENV)/installed
	for campaign in $(SOAK); do $(BIN)/python -m experiments.soak.$$campaign \
		--json experiments/soak/results/$$campaign.json || exit 1; done

clean:
	rm -rf $(VENV) $(VENV_BENCH) build *.egg-info
