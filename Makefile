# Each target sets itself up: a virtual environment in .venv with the versions of constraints.txt.
#
#   make demo                 own sample pictures -> every scheme x PyTorch, ONNX Runtime -> report
#   make demo IMAGES=folder   the same on your pictures (CALIBRATE=folder: static activations too)
#   make test                 ruff, mypy, pytest (what CI runs)
#   make bench                times, memory and sizes at VGGT-1B shape; 25 GB of disk, 15 GB of memory
#   make bench-rtx            engines of every scheme by TensorRT-RTX, no GPU needed: seconds, memory, bytes
#   make bench-gpu            on a CUDA machine, with whatever is installed there (PYTHON's environment)
#   make lint                 ruff and mypy alone
#   make clean                removes .venv, caches and demo/

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo
IMAGES ?=
# Other pictures of the same kind, for static activations; the demo renders its own.
CALIBRATE ?=
MODEL ?= random:vggt-small
SCHEMES ?= all
# Small, so that every variant of the demo takes seconds; 518 is what VGGT was trained with.
WIDTH ?= 224
REPEATS ?= 3
WORKERS ?= 2
PYTEST_ARGS ?=

CALIBRATION = $(or $(CALIBRATE),$(if $(IMAGES),,$(DEMO)/calibration))

.PHONY: demo test bench bench-rtx bench-gpu lint clean setup
.DEFAULT_GOAL := test

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo 'Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo '== installing into $(VENV) (once; minutes, PyTorch is large)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[cpu,rtx,test]'
	@touch $@

# Only demo/report and the sample pictures are replaced; your folder in IMAGES is only read.
demo: $(STAMP)
	@if [ -z '$(IMAGES)' ]; then \
	  $(BIN)/vggt-deploy sample-images --overwrite -o $(DEMO)/images && \
	  $(BIN)/vggt-deploy sample-images --overwrite --seed 1 -o $(DEMO)/calibration; \
	fi
	$(BIN)/vggt-deploy compare --overwrite --model '$(MODEL)' --schemes '$(SCHEMES)' \
	  --runtimes torch,onnxruntime --max-images 5 --width $(WIDTH) --repeats $(REPEATS) \
	  $(if $(CALIBRATION),--calibrate '$(CALIBRATION)') \
	  --images '$(if $(IMAGES),$(IMAGES),$(DEMO)/images)' -o $(DEMO)/report
	@echo 'Plots:    $(DEMO)/report/comparison_plots.png'
	@echo 'Summary:  $(DEMO)/report/comparison_summary.txt'
	@echo 'Numbers:  $(DEMO)/report/comparison_report.json'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread per worker: the tensors are tiny, and threads of two workers get in each other's way.
# loadscope: the tests of a module stay in one worker, so that its exported artifact is made once.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

# BENCH_ARGS='--model random:vggt-tiny' is the same in two minutes; see bench/README.md.
bench: $(STAMP)
	$(BIN)/python -m bench.export_cpu $(BENCH_ARGS)

bench-rtx: $(STAMP)
	$(BIN)/python -m bench.tensorrt_rtx $(BENCH_ARGS)

# Not in .venv: the point is to measure the PyTorch, ONNX Runtime and TensorRT that the machine has.
bench-gpu:
	$(PYTHON) -m bench.gpu $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
