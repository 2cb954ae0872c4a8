# Everything from a bare clone: make demo, make test. Needs Python 3.11 or newer, nothing else.
#
#   make test     lint, types and all tests            make demo    the quickstart policy, end to end
#   make check    lint and types only                  make bench   the benchmarks
#   make hostile  tries every kill, tamper and malformed input, for an hour or so
#   make model    fetch the default model              make clean   remove what these made
#   make test-kernels   the tests that train, under other CPU kernels, thread counts and seeds
#   make reproduce TABLE=erasure   a published table again, cell by cell (ARGS: fewer rows)
#   make docs     the documentation, as pages in site/
#   make test-compat   exports opened with older transformers
#
# A plain `pip install torch` brings CUDA on Linux, about 3 GB that no CPU needs. Where pip is
# not already pointed at CPU builds: make TORCH_INDEX=<index of CPU wheels> test

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TORCH_INDEX ?=
PIP_INSTALL = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# Stamps: each step is done again only when what it depends on has changed.
MADE = $(VENV)/.made
TORCH = $(VENV)/.torch
INSTALLED = $(VENV)/.installed
MODEL = $(VENV)/.model
DOCS = $(VENV)/.docs

.PHONY: setup model check test test-compat test-kernels hostile demo bench reproduce docs clean format

setup: $(INSTALLED)
model: $(MODEL)

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit("safeedit needs Python 3.11 or newer; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Before everything else, so that no other package picks a build of torch.
$(TORCH): $(MADE) constraints.txt
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(INSTALLED): $(TORCH) pyproject.toml constraints.txt
	$(PIP_INSTALL) hatchling
	$(PIP_INSTALL) --no-build-isolation -e '.[dev,profanity]'
	@touch $@

$(MODEL): $(INSTALLED)
	$(VENV)/bin/python -m safeedit.model.sources
	@touch $@

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_layers.py

# One thread per worker: two of them with two threads each would stand in each other's way.
test: export OMP_NUM_THREADS = 1
test: export PYTHONHASHSEED = 0
test: $(MODEL) check
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# What a tiny model learns hangs on the last bit of every sum, and so on the kernel, and on what was
# drawn. Each line is one way to compute the same, or draws anew; the first that fails stops.
KERNELS = \
	ATEN_CPU_CAPABILITY=default,OMP_NUM_THREADS=1 \
	ATEN_CPU_CAPABILITY=default,OMP_NUM_THREADS=2 \
	ATEN_CPU_CAPABILITY=avx2,OMP_NUM_THREADS=1 \
	ATEN_CPU_CAPABILITY=avx2,OMP_NUM_THREADS=2 \
	ONEDNN_MAX_CPU_ISA=AVX2,OMP_NUM_THREADS=1 \
	ONEDNN_MAX_CPU_ISA=AVX2,OMP_NUM_THREADS=2 \
	OMP_NUM_THREADS=1 \
	OMP_NUM_THREADS=2 \
	SAFEEDIT_TEST_ROUNDING=1,OMP_NUM_THREADS=1 \
	SAFEEDIT_TEST_ROUNDING=2,OMP_NUM_THREADS=1 \
	SAFEEDIT_TEST_SEED=1,OMP_NUM_THREADS=1 \
	SAFEEDIT_TEST_SEED=2,OMP_NUM_THREADS=1 \
	SAFEEDIT_TEST_SEED=3,OMP_NUM_THREADS=1

comma = ,
test-kernels: export PYTHONHASHSEED = 0
test-kernels: $(INSTALLED)
	@for kernel in $(KERNELS); do \
		echo "== $$kernel"; \
		env $$(echo $$kernel | tr '$(comma)' ' ') $(VENV)/bin/python -m pytest -q -m "trains and not smollm2 and not hostile" $(ARGS) || exit 1; \
	done

# What a hostile tester would try, exhaustively: kills at every file operation and the like.
hostile: export OMP_NUM_THREADS = 1
hostile: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m hostile $(ARGS)

# Exports in the versions of transformers that users have, fetched once into the user's cache.
test-compat: export OMP_NUM_THREADS = 1
test-compat: export SAFEEDIT_COMPAT = 1
test-compat: $(INSTALLED)
	$(VENV)/bin/python -m pytest -q tests/export/test_compatibility.py

demo: $(MODEL)
	$(VENV)/bin/safeedit apply policies/quickstart.yaml
	@echo "report: out/quickstart.report/report.html"

$(DOCS): $(INSTALLED)
	$(PIP_INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

# Every warning is an error: a link that leads nowhere, an anchor that is not there.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)
	$(VENV)/bin/mkdocs build --strict
	@echo "documentation: site/index.html"

bench: $(MODEL)
	@for benchmark in $(filter-out benchmarks/reproduce.py,$(wildcard benchmarks/*.py)); do echo "== $$benchmark"; $(VENV)/bin/python $$benchmark || exit 1; done

TABLE ?= erasure
reproduce: $(MODEL)
	$(VENV)/bin/python benchmarks/reproduce.py $(TABLE) $(ARGS)

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist out site .pytest_cache .mypy_cache .ruff_cache .hypothesis
