# make sweep            install, run the demo depth sweep, print the table, write the report
# make sweep EXTRA=cuda the same on an NVIDIA GPU (EXTRA=tpu on a TPU)
# make test             install, run the tests (make test-slow: the long ones too)
# make test-quick       install, run the fast tests: under two minutes on two cores, for who edits
# make test-slurm       install, run jobs on a Slurm that is set up for it (root and apt-get, or skipped)
# make test-peers       install Keras, ONNX and PyTorch too; compare the networks with theirs
# make test-notebooks   install a kernel and pandas, execute the notebooks of examples/
# make test-programs    install compilers for TPUs and NVIDIA's GPUs into .venv-programs, test programs for
#                       such that are not here
# make dist             install, build a wheel into dist/
# make test-dist        install the wheel into an environment of its own, and try it outside the checkout
# make readme           run the commands of the README and docs/ in a fresh clone (not a test; minutes)
# make docs             install, build the site of docs/ into site/
# make lint             install, check style and types
# make clean            remove the virtual environment and caches; runs/ stays
#
# SWEEP=vgg_depth ARGS='--seeds 5 --set ...'   which sweep, and further arguments for it
# PYTHON=python3.12                       the Python a new virtual environment is made with
# PYTEST='-n 2 -k seeding'                further arguments for pytest

SHELL := /bin/bash
VENV ?= .venv
SWEEP ?= residual_depth vgg_depth
ARGS ?=
EXTRA ?=
PYTHON ?=
# The fast files: configs, run ids, house rules, documents.
QUICK := $(addprefix tests/,test_house.py test_readme.py test_reference.py test_docs.py \
  $(addprefix experiments/test_,config.py runs.py text.py statistics.py papers.py) \
  $(addprefix launch/test_,run_ids.py config_verb.py cluster.py describe.py))
WORKERS ?= -n auto --maxprocesses 4
PYTEST ?=

BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --progress-bar on)

comma := ,
ifneq ($(filter-out cuda tpu jpeg tfds keras wandb mlflow notebooks peers test docs,$(subst $(comma), ,$(EXTRA))),)
$(error EXTRA is cuda, tpu, jpeg, tfds, keras, wandb, mlflow, notebooks, peers, test or docs, or several with commas between; not '$(EXTRA)')
endif

# One stamp per set of extras, remade when pyproject.toml changes. Any set can run a sweep.
TEST := $(VENV)/.installed-test
PEERS := $(VENV)/.installed-test,peers
NOTEBOOKS := $(VENV)/.installed-test,notebooks
DOCS := $(VENV)/.installed-docs
RUN := $(if $(EXTRA),$(VENV)/.installed-$(EXTRA),$(firstword $(wildcard $(VENV)/.installed-*) $(VENV)/.installed-run))

.PHONY: help sweep test test-quick test-slow test-slurm test-peers test-notebooks test-programs test-dist dist readme docs lint clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

sweep: $(RUN)
	$(BIN)/cnn-depth sweep $(SWEEP) $(ARGS)

test: $(TEST)
	$(BIN)/python -m pytest -m 'not slow and not peers and not programs and not slurm and not notebooks' $(WORKERS) $(PYTEST)

test-quick: $(TEST)
	$(BIN)/python -m pytest -m 'not slow and not peers and not programs and not slurm and not notebooks' $(WORKERS) $(PYTEST) $(QUICK)

test-slow: $(TEST)
	$(BIN)/python -m pytest -m 'not peers and not programs and not notebooks' $(WORKERS) $(PYTEST)

# One after the other: a job's processes and the tests' own share the cores as it is.
test-slurm: $(TEST)
	$(BIN)/python -m pytest -m 'slurm and not slow' $(PYTEST)

test-peers: $(PEERS)
	$(BIN)/python -m pytest -m 'peers and not slow' $(WORKERS) $(PYTEST)

# One after the other, as a reader would run them.
test-notebooks: $(NOTEBOOKS)
	$(BIN)/python -m pytest -m 'notebooks and not slow' $(PYTEST) tests/test_notebooks.py

# An environment of its own: JAX looks for a TPU wherever libtpu is installed. Of CUDA its compiler is
# enough, without the libraries that a GPU needs.
test-programs:
	$(MAKE) --no-print-directory VENV=.venv-programs .venv-programs/.installed-programs
	JAX_PLATFORMS=cpu .venv-programs/bin/python -m pytest -m programs $(PYTEST) tests/launch/test_programs.py tests/launch/test_memory.py

dist: $(TEST)
	rm -rf dist
	$(BIN)/python -m hatchling build -t wheel

test-dist: dist
	rm -rf .venv-dist
	$(MAKE) --no-print-directory VENV=.venv-dist .venv-dist/bin/python
	$(if $(UV),uv pip install --python .venv-dist/bin/python,.venv-dist/bin/python -m pip install -q) dist/*.whl
	.venv-dist/bin/python tests/dist.py dist/*.whl

readme:
	python3 tests/readme.py

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-programs .venv-dist build dist site .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-run: pyproject.toml | $(BIN)/python
	@echo "Installing cnn-depth into $(VENV) (a few minutes the first time) ..."
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-programs: $(VENV)/.installed-test,tpu
	version=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("jaxlib"))'); \
	$(INSTALL) --no-deps jax-cuda12-plugin==$$version jax-cuda12-pjrt==$$version
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing cnn-depth[$*] into $(VENV) (a few minutes the first time) ..."
	$(INSTALL) -e '.[$*]'
	@touch $@

$(BIN)/python:
	@set -e; \
	supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	python='$(PYTHON)'; \
	if [ -z "$$python" ] && [ -n '$(UV)' ]; then \
	  uv venv --seed --python '>=3.11,<3.14' $(VENV); exit; \
	fi; \
	if [ -z "$$python" ]; then \
	  for candidate in python3 python3.13 python3.12 python3.11; do \
	    if $$candidate -c "$$supported" 2>/dev/null; then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "cnn-depth needs Python 3.11, 3.12 or 3.13, and found $$(python3 --version 2>/dev/null || echo none)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	if ! $$python -c "$$supported" 2>/dev/null; then \
	  echo "cnn-depth needs Python 3.11, 3.12 or 3.13; $$python is $$($$python --version 2>/dev/null || echo not there)." >&2; \
	  echo "Name another: make PYTHON=python3.12 ..." >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$python --version) ..."; \
	if ! $$python -m venv $(VENV); then \
	  rm -rf $(VENV); \
	  echo "$$python cannot make a virtual environment: install its venv package (python3-venv) or uv." >&2; exit 1; \
	fi
