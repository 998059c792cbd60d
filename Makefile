# Every task of the project. `make` alone lists them.
#
# Builds: build/editable holds the core, the Python modules (written to kvstore/) and the native
# tests; build/werror, build/address and build/thread are trees of their own. With WERROR=ON
# build/editable is itself built so that warnings are errors, and `make check` needs no other tree.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON_VENV := $(BIN)/python
BUILD := build/editable
JOBS ?= $(shell nproc)
PYTEST_WORKERS ?= 0
WERROR ?= OFF
FUZZ_SECONDS ?= 60
GPU_PYTHON ?= python3
SOAK_SEEDS ?= 100000
CMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" cmake
CXX_FILES = $$(git ls-files -co --exclude-standard '*.cpp' '*.hpp' '*.h' | grep -v third_party/)

.DEFAULT_GOAL := help
.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' \
	  | column -t -s '|'

.PHONY: setup
setup: ## make .venv and build everything into it
	@scripts/setup.sh
	@$(MAKE) --no-print-directory build
	@echo "ready: $(BIN)/kvstore, $(BIN)/kvstore-node, $(BIN)/kvstore-bench"

$(PYTHON_VENV):
	@scripts/setup.sh

.PHONY: build
build: $(PYTHON_VENV) ## bring the native parts up to date
	@test -e $(BUILD)/CMakeCache.txt || scripts/setup.sh
	@$(CMAKE) -S . -B $(BUILD) -DKVSTORE_BUILD_TESTS=ON -DKVSTORE_WERROR=$(WERROR) \
	  >build/configure.log \
	  || { cat build/configure.log; exit 1; }
	@$(CMAKE) --build $(BUILD) -j $(JOBS)

.PHONY: native-tests
native-tests: doctest build
	@$(CMAKE) --build $(BUILD) -j $(JOBS) --target kvstore_native_tests kvstore_simulation_tests

.PHONY: doctest
doctest: $(PYTHON_VENV)
	@test -e /usr/include/doctest/doctest.h || $(PYTHON_VENV) scripts/debs.py doctest-dev

.PHONY: demo
demo: build ## two memory nodes, two clients, a prefix-cache replay, every byte checked
	@$(BIN)/kvstore demo

.PHONY: demo-llm
demo-llm: build ## two engines with a real model share one prefix (installs torch and transformers)
	@engine=$$(python3 scripts/engine.py transformers) && "$$engine" -m kvstore.demo.llm

.PHONY: test
test: native-tests ## all tests that need no root, no virtual machine and no engine
	@$(PYTHON_VENV) -m pytest -n $(PYTEST_WORKERS) --dist loadfile -m "not network" $(TESTS)

.PHONY: test-engines
test-engines: build ## the engine adapters with their real engines (installs those, gigabytes)
	@scripts/test_engines.sh

# GPU_PYTHON: an interpreter with torch for the GPU, pytest, and what pyproject.toml lists.
.PHONY: test-gpu
test-gpu: build ## blocks in the memory of a GPU (needs one; no part of `make ci`)
	@KVSTORE_ENGINE=gpu KVSTORE_GPU=1 PYTHONPATH=. $(GPU_PYTHON) -m pytest -p no:cacheprovider \
	  tests/engines/test_block_memory.py tests/engines/test_gpu_order.py

.PHONY: rxe
rxe: native-tests verbs ## real RDMA: fabric and store in virtual machines with Soft-RoCE
	@$(CMAKE) --build $(BUILD) -j $(JOBS) --target post_path store_path lost_device
	@KVSTORE_RXE=1 $(PYTHON_VENV) -m pytest --timeout 900 --ignore tests/rxe/guest tests/rxe

# The fabric is built where libibverbs' headers are: the system's or these.
.PHONY: verbs
verbs: $(PYTHON_VENV)
	@test -e kvstore/_verbs.so || { $(PYTHON_VENV) scripts/debs.py libibverbs-dev \
	  && $(MAKE) --no-print-directory build && test -e kvstore/_verbs.so; }

.PHONY: check
check: $(PYTHON_VENV) ## style, types, generated files, and a build without warnings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@$(PYTHON_VENV) scripts/generate.py --check
	@$(PYTHON_VENV) -m pytest tests/test_tidy.py
	@$(MAKE) --no-print-directory werror

.PHONY: werror
ifeq ($(WERROR),ON)
werror: native-tests
else
werror: doctest
	@$(CMAKE) -S . -B build/werror -G Ninja -DKVSTORE_WERROR=ON -DKVSTORE_BUILD_TESTS=ON \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja >build/configure.log \
	  || { cat build/configure.log; exit 1; }
	@$(CMAKE) --build build/werror -j $(JOBS) --target kvstore_core kvstore_native_tests \
	  kvstore_simulate kvstore_simulation_tests
endif

.PHONY: format
format: $(PYTHON_VENV) ## rewrite the sources in the project's format
	@$(BIN)/ruff check --fix-only -q . || true
	@$(BIN)/ruff format -q .
	@$(BIN)/clang-format -i $(CXX_FILES)

.PHONY: generate
generate: $(PYTHON_VENV) ## write the generated files anew (_native.pyi, gRPC stubs)
	@$(PYTHON_VENV) scripts/generate.py

.PHONY: sim
sim: build ## every scenario of the simulator, 200 seeds each
	@$(BIN)/kvstore-bench sim all --seeds 1-200

.PHONY: soak
soak: build ## 100,000 seeds over all scenarios, hours; the result goes to bench/results
	@$(PYTHON_VENV) bench/soak.py $(SOAK_SEEDS)

.PHONY: sanitize
sanitize: doctest ## native tests under ASan, UBSan and TSan (clang-19), then the fuzzers
	@FUZZ_SECONDS=$(FUZZ_SECONDS) JOBS=$(JOBS) scripts/sanitize.sh

.PHONY: bench
bench: build ## the figures of the README and of docs/benchmarks.md, written to build/bench
	@$(CMAKE) --build $(BUILD) -j $(JOBS) --target kvstore_native_benches
	@bench/run.sh

.PHONY: ci
ci: ## every stage with its wall time: what .ci/run runs
	@scripts/ci.sh

.PHONY: clean
clean: ## remove what was built, not .venv
	@rm -rf build/editable build/wheel build/werror build/address build/thread kvstore/*.so
