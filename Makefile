# Two commands: `make demo` and `make test`. Both make .venv on first use and start at once afterwards.
# TORCH_INDEX: where pip finds a CPU build of torch, e.g. https://download.pytorch.org/whl/cpu (default: pip's own configuration).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH_INDEX ?=
# Test files that run side by side.
JOBS ?= 2

SOURCES := pyproject.toml constraints.txt $(shell find cext -name '*.[ch]' 2>/dev/null)

.PHONY: demo test lint clean install help boards-kernels wheels board

help:
	@echo "make demo    FedAvg, full-graph gossip and the optimised plan, side by side; ends with demo/report.html"
	@echo "make test    ruff, mypy and the whole test suite"
	@echo "make boards-kernels   every kernel on emulated ARM cores"
	@echo "make wheels  manylinux wheels for x86-64 and, cross-compiled, aarch64, in dist/"
	@echo "make board   as root: an emulated arm64 board in a folder, with CPU torch and our wheel, and tests in it (minutes)"
	@echo "make clean   removes what they made"

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[simulation,topology,data,report,wheels,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m examples.demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

# Without these tools the tests would skip, and prove nothing.
boards-kernels: $(STAMP)
	@for tool in aarch64-linux-gnu-gcc qemu-aarch64-static; do command -v $$tool >/dev/null || \
	    { echo "$$tool is missing: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"; exit 1; }; done
	$(BIN)/python -m pytest -q tests/kernels/test_arm.py

# The headers of one 64-bit Linux serve the other: the extension has the stable ABI, and only int and pointers matter.
ARM   := CC=aarch64-linux-gnu-gcc LDSHARED='aarch64-linux-gnu-gcc -shared' _PYTHON_HOST_PLATFORM=linux-aarch64
WHEEL := $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation
DIST  ?= dist

# A wheel of another version would stay beside the new one.
wheels: $(STAMP)
	rm -rf build $(DIST)/flower_edge-*.whl
	$(WHEEL) -w build/wheels .
	$(ARM) $(WHEEL) -w build/wheels .
	for wheel in build/wheels/*.whl; do PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m auditwheel repair -z 9 -w $(DIST) $$wheel || exit 1; done

# Kept between runs: Debian and the packages are fetched once.
BOARD ?= /var/tmp/flower_edge-board

board: wheels
	PIP=$(abspath $(BIN))/python tests/board/board.sh $(DIST)/*_aarch64.whl $(BOARD)

clean:
	rm -rf $(VENV) build $(DIST) demo cext/build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info flower_edge/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
