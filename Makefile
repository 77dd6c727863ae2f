# Everything from a bare clone; needs Python >= 3.10 with venv and pip, and a C++ compiler.
#   make demo    trains the rings in a minute or two and leaves figures in runs/demo
#   make test    the ordinary tests, two at a time  make lint    formatters, linters, types
#   make test-oldest    the operations under the oldest torch, with the library as built for TORCH
#   make bench   throughput against plain PyTorch   make clean   back to a bare clone
# Another torch: make demo TORCH=torch==2.11.0; its tests also want its TRITON=triton==3.6.0

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
SOURCES := $(shell find csrc stanley_fast kernels -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu') \
           setup.py pyproject.toml Makefile
HAS_TORCH := $(VENV)/.has-$(subst =,-,$(TORCH))
# build/lib is emptied first: setuptools would install files that have left the package.
INSTALL = rm -rf build/lib* && $(BIN)/pip install -q --no-build-isolation

# Big temporaries come from the heap: fresh pages for each would be most of the baselines' time.
MALLOC := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow test-oldest lint bench clean

demo: $(VENV)/.cli
	$(BIN)/stanley-fast train rings --preset demo --folder runs/demo --overwrite

test: $(VENV)/.test
	$(BIN)/pytest -n $(JOBS)

test-slow: $(VENV)/.test
	$(BIN)/pytest --slow

test-oldest: $(VENV)/.test
	$(BIN)/python tests/oldest_torch.py build/oldest_torch

bench: $(VENV)/.test
	$(MALLOC) $(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds $(BENCH)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf $(VENV) build dist runs *.egg-info stanley_fast/*.so

# torch first and alone, so that the version asked for is the one that everything else builds with.
$(HAS_TORCH):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)" "setuptools>=77" numpy ninja pybind11
	rm -f $(VENV)/.has-* && touch $@

$(VENV)/.cli: $(HAS_TORCH) $(SOURCES)
	$(INSTALL) ".[cli]" && touch $@

$(VENV)/.test: $(HAS_TORCH) $(SOURCES)
	$(INSTALL) ".[test]" "$(TORCH)" $(TRITON) && touch $@ $(VENV)/.cli

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/pip install -q ".[lint]" --no-build-isolation && touch $@
