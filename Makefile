# make demo    install into $(VENV) and draw the first pictures
# make test    install with the development tools and run the tests, a worker for each core
# make test-slow    the tests that are long by their nature
# make test-full-size  models at their published sizes: 17 GB on the disk, 16 GB of memory
# make test-serving    servers as processes of their own: signals, restarts, kills; the page in a real browser
# make lint    ruff (lint and format) and mypy
# make dist    wheel and source distribution into dist/
#
# With a GPU: make demo PIP_TORCH=torch==2.13.0   (PyPI's build of PyTorch, with CUDA)

PYTHON ?= python3
VENV ?= .venv
PIP_TORCH ?= torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
# What is installed: this folder, editable. CI passes a wheel and an empty EDITABLE.
PACKAGE ?= .
EDITABLE ?= -e
DEMO_PROMPT ?= a pink heart and a yellow star in a blue sea
DEMO_OUT ?= out/demo

BIN = $(VENV)/bin
# An idle worker takes over what another still has before it; each is one thread and up to 2 GiB.
PYTEST = $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal
# Not compiled on arrival: Python compiles what is imported, a small part of what is installed, and keeps it: an
# environment that forbids that would have every process compile PyTorch anew.
export PYTHONDONTWRITEBYTECODE :=
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile

.PHONY: demo test test-slow test-serving test-full-size lint format types dist clean

demo: $(VENV)/.installed
	$(BIN)/twig generate "$(DEMO_PROMPT)" -n 4 --out "$(DEMO_OUT)"
	@echo "The pictures are in $(DEMO_OUT); begin with the one that ends in -sheet.png"

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not serving and not full_size" $(PYTEST_ARGS)

test-full-size: $(VENV)/.installed-dev
	$(PYTEST) -n 0 -m full_size tests/full_size $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow $(PYTEST_ARGS)

# Half of their time they wait for servers to start and to end: three share two cores.
test-serving: $(VENV)/.installed-serving
	$(PYTEST) -n 3 -m serving $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# This folder is the package twig whatever it is called on disk: mypy finds it under that name through a link.
types: $(VENV)/.installed-dev
	mkdir -p $(VENV)/source
	ln -sfn "$(CURDIR)" $(VENV)/source/twig
	MYPYPATH=$(VENV)/source $(BIN)/mypy -p twig

dist: $(VENV)/.installed-dev
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# Ray is large, and these tests alone need it. It is compiled: a node gives its agents seconds to start, in which they
# would compile it again and again.
$(VENV)/.installed-serving: $(VENV)/.installed-dev
	$(subst --no-compile,--compile,$(PIP)) $(EDITABLE) "$(PACKAGE)[ray]"
	@touch $@

# --no-deps, so that this index serves PyTorch alone; the next install brings what it depends on.
$(VENV)/.torch:
	@echo "Creating $(VENV) and installing PyTorch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) --no-deps $(PIP_TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "Installing Twig and what it depends on"
	$(PIP) $(EDITABLE) "$(PACKAGE)"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	@echo "Installing Twig with its development tools"
	$(PIP) $(EDITABLE) "$(PACKAGE)[dev]"
	@touch $@ $(VENV)/.installed
