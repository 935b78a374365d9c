# make demo | test | test-all | gpu-quick | lint | docs | pictures | package | clean. Each target installs what it needs
# into $(VENV), once, and no more.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12     another interpreter, in an environment of its own
#   make demo DEMO="--dataset fashion-mnist"        another demo; see `simjax demo --help`
#   make test PYTEST="-x tests/implicit/test_model.py"       other tests

PYTHON ?=
VENV ?= .venv
DEMO ?= --dataset digits
DIST ?=
PACKAGE_PYTHONS ?= $(BIN)/python
PYTEST ?= -n auto --dist loadfile

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
CHEAP_COMPILATION := --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1
RUN_TESTS = OPENBLAS_NUM_THREADS=1 XLA_FLAGS="$(CHEAP_COMPILATION)" $(BIN)/python -m pytest
CANDIDATES := python3.12 python3.11 python3.13 python3 python
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test test-all gpu-quick lint format docs pictures package clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-all
	$(BIN)/simjax demo --output demo-output --force $(DEMO)

# One test process per core: threaded BLAS inside each would have them wait for one another. Tests compile many small
# programs and run each a few times, so compilation is made cheap.
test: $(VENV)/.installed-test
	$(RUN_TESTS) -m "not slow" $(PYTEST)

# And what takes long: more of the comparisons with the oracles, of the rows at the edge of float64, of training.
test-all: $(VENV)/.installed-test
	$(RUN_TESTS) $(PYTEST)

# The command that measures GPUs, at small sizes on whatever is here.
gpu-quick: $(VENV)/.installed-test
	XLA_FLAGS="$(CHEAP_COMPILATION)" $(BIN)/python -m benchmarks.gpu --quick $(if $(OUTPUT),--output $(OUTPUT))

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pictures of the README, the gallery and the tutorials, and what the notebooks say.
pictures: $(VENV)/.installed-test
	$(BIN)/python docs/pictures.py

# Builds, checks, and tries the wheel, without extras, on each of PACKAGE_PYTHONS in a new environment; with DIST=folder,
# what was built is left there.
package: $(VENV)/.installed-package
	DIST="$(DIST)" .ci/package $(BIN)/python $(PACKAGE_PYTHONS)

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# A stamp for each set of extras, so that a second run installs nothing.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/.made
	@echo "Installing simjax[$*] into $(VENV) ..."
	@$(PIP) install -e '.[$*]'
	@touch $@

$(VENV)/.made:
	@for python in $(or $(PYTHON),$(CANDIDATES)); do \
	  if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	    "$$python" -m venv $(VENV) && touch $@ && exit 0 || exit 1; \
	  fi; \
	done; \
	echo "No suitable Python among: $(or $(PYTHON),$(CANDIDATES)). simjax needs Python >= 3.11 with the venv" \
	     "module (on Debian and Ubuntu: apt-get install python3-venv). Name another by make PYTHON=/path/to/python." >&2; \
	exit 1
