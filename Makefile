# `make demo` and `make test` do all the set-up on a machine that has Python (3.11 or later) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS = JAX_PLATFORMS=cpu .venv-docs/bin/python -m sphinx -W --keep-going -d build/doctrees
RUN := JAX_PLATFORMS=$(or $(JAX_PLATFORMS),cpu) $(BIN)/python

.PHONY: demo test test-all lint rooms docs docs-links wheel wheel-check bench peers flower clean

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(VENV)/ready
	$(RUN) -m launch.compare --config=configs/digits.py --workdir=runs/demo

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy fedjax_het launch benchmarks docs/rooms.py docs/reference.py

# What takes minutes is left to `make test-all`, which CI runs.
test: lint
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

test-all: test
	$(RUN) -m pytest -n 2 --dist worksteal -m slow

# The picture of the package in docs/architecture.md, from its imports.
rooms: $(VENV)/ready
	$(RUN) docs/rooms.py

# The site in build/docs: notebooks executed, no warnings. `make docs-links` also follows links out of it.
docs: .venv-docs/ready
	$(DOCS) -b html docs build/docs
	@echo "open build/docs/index.html"

docs-links: .venv-docs/ready
	$(DOCS) -b linkcheck docs build/docs-links

.venv-docs/ready: docs/requirements.txt requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# What an earlier build left behind would be packed again.
wheel: $(VENV)/ready
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# Installs the wheel where nothing else is, and uses it away from the checkout.
wheel-check: wheel
	$(BIN)/python -m venv build/fresh
	build/fresh/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock dist/*.whl
	cd build/fresh && bin/python -I -c 'import fedjax_het; print(fedjax_het.__file__, fedjax_het.__version__)'
	cd build/fresh && bin/fedjax-het --help && bin/fedjax-het --version

bench: $(VENV)/ready
	$(RUN) -m benchmarks.micro.training
	$(RUN) -m benchmarks.micro.conv
	$(RUN) -m benchmarks.scale.cohort

# FEDJAX_HET_DATA names the directory with CIFAR-10 and FEMNIST.
peers: $(VENV)/ready .venv-peers/ready
	$(RUN) -m benchmarks.peers.compare --python .venv-peers/bin/python --json peers.json --markdown peers.md

.venv-peers/ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@touch $@

# The apps of Flower, in its simulation and over its network on the loopback.
flower: .venv-flower/ready
	JAX_PLATFORMS=cpu .venv-flower/bin/python -m pytest -rP tests/export/test_flower.py

.venv-flower/ready: tests/export/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-flower
	.venv-flower/bin/python -m pip install --quiet --disable-pip-version-check -r tests/export/requirements.txt
	.venv-flower/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf .venv-docs .venv-flower .venv-peers $(VENV) .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache \
	  build dist *.egg-info
