# make demo   an image from a prompt, on OneFlow and on torch, in out/
# make test   the tests
# Both set up .venv first: Python 3.10 and what requirements.lock names.
SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROMPT ?= a large red circle left of a small blue star on a yellow background
export HF_HUB_OFFLINE := 1

.PHONY: demo test lint docs conformance conformance-full conformance-ci conformance-report bench sdist wheel clean

demo: $(READY)
	$(BIN)/python -m diffusers_oneflow.demo.compare "$(PROMPT)" --out out

# Two workers; the threads of one must not spin while the other's work.
test: lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist worksteal

# The native sources.
NATIVE := $(wildcard $(foreach folder,csrc csrc/* csrc/*/*,diffusers_oneflow/*/$(folder)/*.cpp diffusers_oneflow/*/$(folder)/*.h))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

# The pages of docs/ as a site; a broken link or a page that is not in the menu is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# JOBS=8 takes so many processes, for this and conformance-ci.
JOBS ?= 1
conformance: $(READY)
	$(BIN)/python -m conformance --jobs $(JOBS)

# The models of full size, in minutes and gigabytes.
conformance-full: $(READY)
	$(BIN)/python -m conformance --full --only "sd15*"

# One of SHARDS parts of the suite, with its reports in out/; each takes less than 12 minutes on 2 cores.
SHARD ?= 1
SHARDS ?= 8
conformance-ci: $(READY)
	mkdir -p out
	$(BIN)/python -m conformance --jobs $(JOBS) --shard $(SHARD)/$(SHARDS) --json out/conformance-$(SHARD).json \
	  --html out/conformance-$(SHARD).html --junit out/conformance-$(SHARD).xml

# One report of all parts.
conformance-report: $(READY)
	ls out/conformance-*.json
	$(BIN)/python -m conformance $(addprefix --from ,$(wildcard out/conformance-*.json)) \
	  --html out/conformance.html --junit out/conformance.xml --markdown out/conformance.md

bench: $(READY)
	$(BIN)/python -m benchmarks.speed --model demo
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.soak --quick

# What a release uploads, in dist.
sdist: $(READY)
	$(BIN)/python -m build --no-isolation --sdist -o dist .
	$(BIN)/python -m twine check --strict dist/*.tar.gz

# SOURCE may be a source archive.
SOURCE ?= .
wheel: $(READY)
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist $(SOURCE)
	$(BIN)/python -m twine check --strict dist/*.whl

# The native parts are rebuilt when their sources change; Python files need nothing.
$(READY): requirements.lock pyproject.toml setup.py diffusers_oneflow_mock.pth $(wildcard diffusers_oneflow/*/csrc/* diffusers_oneflow/kernels/csrc/math/*) | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

$(BIN)/python:
	python=$$(PYTHON="$(PYTHON)" bash scripts/find_python.sh) && echo "Python: $$python" && "$$python" -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist out site .mypy_cache *.egg-info
