# Each target sets itself up: a virtual environment in .venv with the versions of constraints.txt.
#
#   make demo                 rendered scenes -> vggt-nano, every scheme x PyTorch, ONNX Runtime -> report
#   make demo IMAGES=folder   the same on your pictures (CALIBRATE=folder: static activations too)
#   make demo SCENES=folder   on your scenes with truth, in ETH3D's layout
#   make test                 ruff, mypy, pytest (what CI runs); as root it installs Debian's Chromium
#   make bench                times, memory and sizes at VGGT-1B shape; 25 GB of disk, 15 GB of memory
#   make bench-rtx            engines of every scheme by TensorRT-RTX, no GPU needed: seconds, memory, bytes
#   make bench-accuracy       what each switch of quantization buys on vggt-nano, ModelOpt beside it
#   make bench-gpu            on a CUDA machine, with whatever is installed there (PYTHON's environment)
#   make lint                 ruff and mypy alone
#   make clean                removes .venv, caches and demo/

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODELOPT_STAMP := $(VENV)/.modelopt
DEMO := demo
IMAGES ?=
SCENES ?=
# Other pictures of the same kind, for static activations; the demo renders its own.
CALIBRATE ?=
MODEL ?= vggt-nano
SCHEMES ?= all
# Empty: what the model works at.
WIDTH ?=
# Of each scene.
VIEWS ?= 4
REPEATS ?= 3
# More options of `vggt-deploy compare`, such as --gate.
DEMO_ARGS ?=
WORKERS ?= 2
PYTEST_ARGS ?=

OWN = $(IMAGES)$(SCENES)
# compare refuses --calibrate where no scheme looks at pictures.
LOOKS = $(filter all,$(SCHEMES))$(foreach word,+static +smooth +gptq,$(findstring $(word),$(SCHEMES)))
CALIBRATION = $(or $(CALIBRATE),$(if $(OWN),,$(if $(strip $(LOOKS)),$(DEMO)/calibrate)))

.PHONY: demo test browser bench bench-rtx bench-accuracy bench-gpu lint clean setup
.DEFAULT_GOAL := test

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo 'Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo '== installing into $(VENV) (once; minutes, PyTorch is large)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[cpu,rtx,eth3d,ray,test]'
	@touch $@

# Seeds from 1 000 000 on are in no training, the family hall is in none at all, and what static
# activations are calibrated on is in neither. Only demo/report and the rendered scenes are replaced;
# your folders are only read.
demo: $(STAMP)
	@if [ -z '$(OWN)' ]; then \
	  $(BIN)/vggt-deploy scene --overwrite --size 224x168 --views $(VIEWS) --count 8 --seed 1000000 \
	    -o $(DEMO)/scenes/unseen && \
	  $(BIN)/vggt-deploy scene --overwrite --size 224x168 --views $(VIEWS) --count 8 --seed 2000000 \
	    --family hall -o $(DEMO)/scenes/held-out && \
	  $(BIN)/vggt-deploy scene --overwrite --size 224x168 --views $(VIEWS) --count 8 --seed 3000000 \
	    -o $(DEMO)/calibrate; \
	fi
	$(BIN)/vggt-deploy compare --overwrite --model '$(MODEL)' --schemes '$(SCHEMES)' \
	  --runtimes torch,onnxruntime --max-images $(VIEWS) --repeats $(REPEATS) \
	  $(if $(WIDTH),--width $(WIDTH)) $(if $(CALIBRATION),--calibrate '$(CALIBRATION)') \
	  $(if $(IMAGES),--images '$(IMAGES)') $(if $(SCENES),--scenes '$(SCENES)') \
	  $(if $(OWN),,--scenes '$(DEMO)/scenes') \
	  $(DEMO_ARGS) -o $(DEMO)/report
	@echo 'Report:   $(DEMO)/report/report.html'
	@echo 'Plots:    $(DEMO)/report/comparison_plots.png'
	@echo 'Summary:  $(DEMO)/report/comparison_summary.txt'
	@echo 'Numbers:  $(DEMO)/report/comparison_report.json'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages are tested in a browser. Root (CI, a container) gets Debian's Chromium and must have one; anyone
# else uses what is there, and without one those tests are skipped and say so.
ROOT := $(filter 0,$(shell id -u))

browser:
	@sh tests/browser/install_chromium.sh $(if $(ROOT),,|| true)

# One thread per worker: the tensors are tiny, and threads of two workers get in each other's way.
# loadscope: the tests of a module stay in one worker, so that its exported artifact is made once.
test: lint browser
	$(if $(ROOT),VGGT_DEPLOY_REQUIRE_BROWSER=1) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

# BENCH_ARGS='--model random:vggt-tiny' is the same in two minutes; see bench/README.md.
bench: $(STAMP)
	$(BIN)/python -m bench.export_cpu $(BENCH_ARGS)

bench-rtx: $(STAMP)
	$(BIN)/python -m bench.tensorrt_rtx $(BENCH_ARGS)

# ModelOpt is an extra of its own: nothing but this table needs it.
bench-accuracy: $(MODELOPT_STAMP)
	$(BIN)/python -m bench.accuracy $(BENCH_ARGS)

$(MODELOPT_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[cpu,modelopt]'
	@touch $@

# Not in .venv: the point is to measure the PyTorch, ONNX Runtime and TensorRT that the machine has.
bench-gpu:
	$(PYTHON) -m bench.gpu $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
