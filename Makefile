# `make demo` and `make test` need nothing but Python: they create .venv and install the package into it first.

PYTHON ?= python3
VENV := .venv
GPU_COMPILER := build/h200
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help demo test xla hf full h200 bench notebook lint types format clean

help:  ## list the targets
	@echo "usage: make TARGET [PYTHON=python3]"
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(INSTALLED)  ## write text with Kangaroo and with plain decoding, and compare their speed
	$(RUN) -m kangaroo_jax --dtype float32 --compare --show

test: $(INSTALLED)  ## run the tests (without the long ones, without torch)
	$(RUN) -m pytest

xla: $(INSTALLED)  ## run what loads models again without the native CPU kernels
	KANGAROO_KERNELS=xla $(RUN) -m pytest tests/kernels tests/cli tests/test_*.py

hf: $(INSTALLED)  ## run the tests against transformers' own models (installs torch)
	@echo "Installing torch; the download can be large."
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(RUN) -m pytest -m hf

full: $(INSTALLED)  ## run the long tests: every prompt, every setting
	$(RUN) -m pytest -m full

# Beside the environment, not in it: there JAX would look for a GPU at every start, and complain.
h200: $(INSTALLED)  ## inspect the code compiled for an H200, without one (fetches XLA's compiler, 132 MB)
	version=$$($(RUN) -c 'import jaxlib; print(jaxlib.__version__)') && \
		test -d $(GPU_COMPILER)/jax_cuda13_plugin-$$version.dist-info || \
		$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(GPU_COMPILER) \
			jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version
	JAX_PLATFORMS=cpu PYTHONPATH=$(GPU_COMPILER) $(RUN) -m pytest -m h200 -n 0 -s

bench: $(INSTALLED)  ## measure every method on joey, gamma and eta, and write docs/benchmarks.md (an hour)
	$(RUN) -m bench.spec_bench --methods all
	$(RUN) -m bench.ablate grid
	$(RUN) -m bench.report runs/spec_bench/joey runs/ablate/joey/grid

notebook: $(INSTALLED)  ## run the notebook anew and store what it shows
	KANGAROO_COMPILATION_CACHE=0 $(RUN) -c 'import nbclient, nbformat; \
		path = "examples/quickstart.ipynb"; \
		book = nbformat.read(path, 4); \
		nbclient.NotebookClient(book, coalesce_streams=True, record_timing=False).execute(); \
		nbformat.write(book, path)'

lint: $(INSTALLED)  ## check style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(INSTALLED)  ## check types
	$(RUN) -m mypy

format: $(INSTALLED)  ## format, and fix what can be fixed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## remove caches and build outputs (not .venv, not runs)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is older than these files when dependencies or kernels may have changed. pip is the last thing that
# `venv` puts into a new environment: without it, an interrupted set-up is made again.
$(INSTALLED): pyproject.toml setup.py $(wildcard kangaroo_jax/kernels/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12"; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing kangaroo_jax and its tools into $(VENV); the first time takes a minute or two."
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(RUN) -m kangaroo_jax.kernels
	@touch $(INSTALLED)
