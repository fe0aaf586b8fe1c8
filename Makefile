# The two commands are `make quickstart` and `make test`. They need Python 3.11, 3.12 or 3.13 and nothing else: each
# creates .venv and installs the versions of constraints.txt.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

.PHONY: quickstart test test-heavy lint types docs results benchmark wheel constraints clean

quickstart: .venv/installed
	$(BIN)/keras-convnets quickstart

# Less time in the kernel and the compiler: huge pages for TensorFlow's arrays (glibc's malloc alone reads this), and
# compiled modules that processes share, also where the environment turns them off.
test: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv/installed lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not heavy"

test-heavy: .venv/backends
	$(BIN)/python -m pytest -m heavy

lint: .venv/installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot map the folders to packages as setup.cfg does: links lay them out as they are installed.
types: .venv/installed
	@rm -rf build/types/keras_convnets && mkdir -p build/types/keras_convnets
	@cd build/types/keras_convnets && ln -s ../../../keras_convnets/* ../../../training ../../../export .
	$(BIN)/mypy

# The page of networks, and the whole site in site/; python -m http.server --directory site shows it, search included.
docs: .venv/installed
	$(BIN)/python docs/make_models_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The page and the figure of CIFAR-10 results, from the metrics of runs in benchmarks/results/cifar10.
results: .venv/installed
	$(BIN)/python benchmarks/cifar10_page.py

benchmark: .venv/installed
	$(BIN)/python benchmarks/training_throughput.py
	$(BIN)/python benchmarks/networks.py

wheel: .venv/installed
	$(BIN)/python -m build --outdir dist .

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

# JAX and PyTorch, which only the heavy tests of Keras' other backends need: several GB where PyTorch brings CUDA.
.venv/backends: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[backends]'
	@touch $@

# After editing setup.cfg: install the newest versions it allows and write them down.
constraints:
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	{ echo "# The versions that the two commands install, on Python 3.11 to 3.13. Made by: make constraints"; \
	  $(BIN)/python -m pip freeze --exclude-editable; } > constraints.txt
	@touch .venv/installed

clean:
	rm -rf .venv build dist site *.egg-info
