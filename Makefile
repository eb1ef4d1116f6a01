# `make help` lists what there is. Every target does its own set-up: Debian packages, the virtual environment in .venv/, the build.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PATH := $(PATH):/usr/sbin:/sbin

BIN := .venv/bin
JOBS := $(shell nproc)
ENGINE := build/engine
INSTALL := PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/pip install -q --no-build-isolation -Cbuild-dir=$(ENGINE) -Ccompile-args=-j$(JOBS) \
  -Csetup-args=-Dtesting=true
SOURCES := $(shell find ext src meson.build meson.options -not -name __pycache__ -not -name '*.pyc')

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

.PHONY: build
build: .venv/installed.stamp ## what `make build` leaves: .venv/bin/iomesh; does nothing when nothing changed

.PHONY: demo
demo: build packages-test ## a database on a volume with three replicas; nodes are killed under it, and not a commit is lost
	$(BIN)/python tools/demo.py $(ARGS)

.PHONY: test
test: build ## the tests, under 15 minutes on 2 cores
	$(MAKE) --no-print-directory -j2 planted packages-test
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

.PHONY: soak
soak: build packages-test simulate ## the long forms of the tests, and all seeds of `make simulate`: hours
	$(BIN)/pytest --soak --timeout=14400 tests/crash tests/programs $(ARGS)

.PHONY: test-csi
test-csi: build packages-test ## the CSI driver under csi-sanity (compiled with Go), and killed at each of its steps
	PYTHONPATH=tests $(BIN)/python -m support.kubernetes.programs sanity
	$(BIN)/pytest --soak --timeout=3600 tests/csi tests/guest/test_csi.py $(ARGS)

.PHONY: bench bench-cluster amplification profile
bench: build packages-test packages-bench ## iomesh beside the raw file and qemu-storage-daemon: a table, build/bench.json and .png
	PYTHONPATH=perf $(BIN)/python -m iomesh_perf bench $(ARGS)

bench-cluster: build packages-test packages-bench ## a volume with 3 replicas on 3 nodes beside the raw file: build/bench-cluster.json, .png
	PYTHONPATH=perf $(BIN)/python -m iomesh_perf cluster $(ARGS)

amplification: build packages-test packages-bench ## write amplification of a volume that is overwritten: build/amplification.json and .png
	PYTHONPATH=perf $(BIN)/python -m iomesh_perf amplification $(ARGS)

profile: build packages-test packages-bench ## where the reactor's time goes under load, by part of the engine
	PYTHONPATH=perf $(BIN)/python -m iomesh_perf profile $(ARGS)

.PHONY: lint lint-style lint-types lint-engine lint-imports lint-generated lint-paths
lint: lint-style lint-types lint-engine lint-imports lint-generated lint-paths ## style, types and the direction of imports

lint-style: build
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .

lint-types: build
	$(BIN)/mypy $(wildcard src perf tests tools/*.py)

lint-engine: build
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/cython-lint ext     # it runs pycodestyle by name

lint-imports: build
	$(BIN)/python tools/cimports.py
	PYTHONPATH=src $(BIN)/lint-imports --no-logo --no-cache

lint-generated: build
	$(BIN)/python tools/generate_api.py --check
	$(BIN)/python tools/generate_schema.py --check
	$(BIN)/python tools/generate_dashboards.py --check

lint-paths: build
	$(BIN)/python tools/paths.py

.PHONY: annotate
annotate: build ## fails on calls into Python in the engine's nogil functions
	$(BIN)/python tools/annotate.py $(ENGINE)

# Container images, as archives in build/images; `make images REGISTRY=registry.example.org/iomesh PUSH=1` also pushes them.
REGISTRY := docker.io/iomesh
TAG := $(shell sed -n 's/^appVersion: //p' charts/iomesh/Chart.yaml)
IMAGES := node operator csi
TEST_IMAGES := postgresql
.PHONY: images
images: build/images/built.stamp ## the container images (images/Containerfile)
	$(if $(PUSH),$(foreach name,$(IMAGES),buildah push $(REGISTRY)/$(name):$(TAG);))

build/images/built.stamp: .venv/installed.stamp $(wildcard images/*) | packages-kubernetes
	rm -rf build/wheels
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/pip wheel -q --no-build-isolation -Cbuild-dir=build/image-engine -Ccompile-args=-j$(JOBS) \
	  -Csetup-args=-Dgenerated=$(CURDIR)/$(ENGINE) -w build/wheels '.[operator]'
	PYTHONPATH=tests $(BIN)/python -m support.kubernetes.images base
	mkdir -p build/images
	for name in $(IMAGES) $(TEST_IMAGES); do \
	  buildah build --quiet --layers --target $$name --tag $(REGISTRY)/$$name:$(TAG) --file images/Containerfile .; \
	  rm -f build/images/$$name.tar; \
	  buildah push --quiet $(REGISTRY)/$$name:$(TAG) oci-archive:build/images/$$name.tar:$(REGISTRY)/$$name:$(TAG); \
	done
	touch $@

.PHONY: test-kubernetes test-kubernetes-e2e
test-kubernetes: build packages-kubernetes ## iomesh in a real Kubernetes on this machine; compiles that, 25 minutes of one core, once
	PYTHONPATH=tests $(BIN)/python -m support.kubernetes.programs
	$(MAKE) --no-print-directory images
	$(BIN)/pytest -n 0 --timeout=3600 tests/kubernetes tests/unit/metadata --ignore tests/kubernetes/e2e $(ARGS)

test-kubernetes-e2e: build packages-kubernetes ## Kubernetes' own end-to-end cases for storage drivers, against iomesh
	PYTHONPATH=tests $(BIN)/python -m support.kubernetes.programs
	PYTHONPATH=tests $(BIN)/python -m support.kubernetes.programs e2e
	$(MAKE) --no-print-directory images
	$(BIN)/pytest -n 0 --timeout=14400 tests/kubernetes/e2e $(ARGS)

# The engine once more, in a folder of its own that stands before .venv's. Python must preload the sanitizer; what Python itself never frees
# is no finding.
SANITIZED := build/sanitized
ENGINE_TESTS := $(wildcard tests/unit/test_*.py) tests/unit/replicas tests/fuzz \
  tests/programs/test_requests.py tests/programs/test_nbd_protocol.py tests/crash/test_kills.py tests/crash/test_small_cache.py
SANITIZING = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
.PHONY: sanitize
sanitize: build packages-test ## the engine's tests, and simulation runs, under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf $(SANITIZED)
	$(subst $(ENGINE),build/sanitize,$(INSTALL)) --no-deps --target $(SANITIZED) \
	  -Csetup-args=-Db_sanitize=address,undefined -Csetup-args=-Dbuildtype=debugoptimized .
	$(SANITIZING) PYTHONPATH=$(CURDIR)/$(SANITIZED) $(BIN)/pytest $(ENGINE_TESTS) $(ARGS)
	$(SANITIZING) PYTHONPATH=$(CURDIR)/$(SANITIZED):tests $(BIN)/python -m simulation --seeds 0..399

# And once more under ThreadSanitizer: what several reactors share. tests/threads.suppressions says what is left out, and why.
RACED := build/raced
RACING = LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
  TSAN_OPTIONS=halt_on_error=0:exitcode=66:second_deadlock_stack=1:history_size=4:suppressions=$(CURDIR)/tests/threads.suppressions
.PHONY: sanitize-threads
sanitize-threads: build packages-test ## two reactors with volumes on shared devices, under ThreadSanitizer
	rm -rf $(RACED)
	$(subst $(ENGINE),build/sanitize-threads,$(INSTALL)) --no-deps --target $(RACED) -Csetup-args=-Dgenerated=$(CURDIR)/$(ENGINE) \
	  -Csetup-args=-Db_sanitize=thread -Csetup-args=-Dbuildtype=debugoptimized .
	$(RACING) PYTHONPATH=$(CURDIR)/$(RACED) $(BIN)/pytest tests/crash/test_reactors.py $(ARGS)

# And once more with bugs that can be planted, to see whether the simulated world finds them.
PLANTED := build/planted
.PHONY: planted
planted: $(PLANTED)/installed.stamp ## the engine with bugs that can be planted (ext/planted.pxd), for the tests of the simulated world

$(PLANTED)/installed.stamp: .venv/installed.stamp
	rm -rf $(PLANTED)
	$(subst $(ENGINE),build/plant,$(INSTALL)) --no-deps --target $(PLANTED) \
	  -Csetup-args=-Dgenerated=$(CURDIR)/$(ENGINE) -Csetup-args=-Dc_args=-DIOMESH_PLANTED .
	touch $@

# And once more for the fuzzer: clang's instrumentation counts what the engine's code reaches, atheris' sanitizer library holds libFuzzer.
FUZZED := build/fuzzed
SECONDS := 300
.PHONY: fuzz
fuzz: build packages-fuzz ## coverage-guided fuzzing of what comes from outside, for SECONDS=300 in all; its corpus grows
	rm -rf $(FUZZED)
	$(BIN)/pip install -q --group fuzz
	CC=clang $(subst $(ENGINE),build/fuzz,$(INSTALL)) --no-deps --target $(FUZZED) -Csetup-args=-Dbuildtype=debugoptimized \
	  -Csetup-args=-Dc_args=-fsanitize=address,fuzzer-no-link -Csetup-args=-Dc_link_args=-fsanitize=address -Csetup-args=-Db_lundef=false .
	PYTHONPATH=$(CURDIR)/$(FUZZED):$(CURDIR)/tests LD_PRELOAD="$$($(BIN)/python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so" \
	  ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=1 $(BIN)/python -m fuzz --seconds $(SECONDS) $(ARGS)

# Simulation runs: whole histories of volumes in the simulated world, one for each seed.
SEEDS := 0..1999
COVERED := build/covered
.PHONY: simulate simulate-soak
simulate: build ## simulation runs, for SEEDS=0..1999; one again: ARGS="--seed 7 --trace 200"
	PYTHONPATH=tests $(BIN)/python -m simulation $(if $(findstring --seed,$(ARGS)),,--seeds $(SEEDS)) $(ARGS)

simulate-soak: $(COVERED)/installed.stamp ## the same with new seeds until it is stopped, with what of the engine they reach
	PYTHONPATH=tests $(BIN)/python -m simulation --soak --covered $(ARGS)

# The engine that counts which of its lines and branches are reached.
$(COVERED)/installed.stamp: .venv/installed.stamp
	rm -rf $(COVERED) build/cover
	$(subst $(ENGINE),build/cover,$(INSTALL)) --no-deps --target $(COVERED) -Csetup-args=-Db_coverage=true .
	touch $@

.PHONY: model
model: .venv/requirements.stamp packages-model ## every state of the model of ownership (docs/ownership.md), and with each rule broken; minutes
	PYTHONPATH=tests $(BIN)/python -m model $(ARGS)

.PHONY: format-images
format-images: build ## makes the images of devices anew that tests/formats holds: after a change of a format
	PYTHONPATH=tests $(BIN)/python -m formats.images

.PHONY: format
format: build ## rewrites the Python code to the style that `make lint` wants
	$(BIN)/ruff check -q --fix . || true
	$(BIN)/ruff format -q .

.PHONY: clean
clean: ## removes what the build made
	rm -rf .venv build

.PHONY: packages-build packages-test packages-kubernetes packages-model packages-bench packages-fuzz
packages-build packages-test packages-kubernetes packages-model packages-bench packages-fuzz: packages-%:
	@tools/packages $*

.venv/requirements.stamp: pyproject.toml tools/python | packages-build
	[ -x $(BIN)/python ] || "$$(tools/python)" -m venv .venv
	$(BIN)/pip install -q 'pip>=25.1'
	$(BIN)/pip install -q --group dev
	touch $@

# A build directory that was set up with other options cannot be given the new ones: all begin anew.
build/options.stamp: meson.options
	rm -rf $(ENGINE) build/plant build/sanitize build/sanitize-threads build/cover build/fuzz
	mkdir -p build
	touch $@

.venv/installed.stamp: .venv/requirements.stamp build/options.stamp $(SOURCES)
	$(INSTALL) .
	touch $@
