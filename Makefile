# make demo | test | lint | format | results | clean. Each makes the environment it needs; a second call takes seconds.
#
#   PYTHON=python3.12   interpreter for .venv (3.10 to 3.13)
#   CMAKE_ARGS=...      more switches for the build of llama.cpp, e.g. -DGGML_CUDA=on
#   PYTEST_ARGS=...     e.g. -k hook -x; -n 0 --pdb for one process and a debugger

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check

# an editable install puts src/ on Python's path and the compiled extension into plugin/: only C needs a new one
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.[ch])
EDITABLE := --no-build-isolation --editable

.PHONY: all demo test lint format results clean
all: $(VENV)/.installed

demo: $(VENV)/.installed
	$(VENV)/bin/ropebend demo

test: $(VENV)/.test
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p ropebend
	$(CC) -std=c11 -O2 -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Werror -fsyntax-only \
	    -DPy_LIMITED_API=0x030A0000 \
	    -Icsrc -isystem "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))')" csrc/*.c

format: $(VENV)/.lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

results: $(VENV)/.installed
	$(PY) bench/results.py

clean:
	rm -rf $(VENV) build demo src/*.egg-info plugin/*.so .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.python:
	@command -v $(CC) >/dev/null || { echo "error: no C compiler; on Debian: apt install build-essential"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else \
	    f"error: Python 3.10 to 3.13 wanted, {sys.executable} is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	@command -v $(CXX) >/dev/null || { echo "error: no C++ compiler; on Debian: apt install build-essential"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; h = sysconfig.get_path("include") + "/Python.h"; \
	    sys.exit(None if os.path.exists(h) else f"error: {h} is missing; on Debian: apt install python3-dev")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "error: no venv module; on Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=24' 'setuptools>=77'
	@touch $@

$(VENV)/.llama: $(VENV)/.python tools/install_llama.py
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $(CMAKE_ARGS)" $(PY) tools/install_llama.py
	@touch $@

$(VENV)/.installed: $(VENV)/.llama $(SOURCES)
	@rm -f plugin/_native.cpython-* # of an earlier version, and found first
	$(PIP) install $(EDITABLE) .
	@touch $@

$(VENV)/.test: $(VENV)/.installed pyproject.toml
	$(PIP) install --quiet $(EDITABLE) '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.installed pyproject.toml
	$(PIP) install --quiet $(EDITABLE) '.[lint,test]'
	@touch $@
