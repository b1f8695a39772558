# make demo [DATASET=folder]   pairs from the shipped weights, then the main job from nothing; minutes
# make test                    every check and test
# make test-long               the same with more repetitions and longer runs
# make bench                   what is faster than what a user would otherwise run, by how much; minutes
# make bench-gpu               the same on a CUDA device
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATASET ?=

.PHONY: demo test test-long lint bench bench-gpu clean

# pip runs again when the dependencies change
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
# nnU-Net's own requirements would replace PyTorch; its dataset check needs few of them. rt-utils asks
# for an OpenCV that needs a display.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		nnunetv2==2.8.1 acvl_utils batchgenerators rt-utils==1.2.7
	touch $@

demo: $(VENV)/installed
	$(BIN)/medpair demo --output_dir demo $(if $(DATASET),--dataset "$(DATASET)")

lint: $(VENV)/installed
	$(BIN)/ruff check common tests
	$(BIN)/ruff format --check common tests
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

test-long: lint
	OMP_NUM_THREADS=1 MEDPAIR_LONG=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --timeout 7200 tests

bench: $(VENV)/installed
	$(BIN)/python tests/benchmarks

bench-gpu: $(VENV)/installed
	$(BIN)/python tests/benchmarks --device cuda

clean:
	rm -rf $(VENV) demo
