# Everything lives in .venv/ and needs Python 3.11 or newer: make demo PYTHON=/path/to/python3.12. Long steps are scripts/.

.DELETE_ON_ERROR:
.PHONY: help demo check lint fmt golden test test-llamacpp test-browser test-remote test-arm arm-machine arm-site android test-android \
	test-android-arm apk-tools android-tools test-ios ios-tools release guard fuzz fuzz-parts fuzz-native faults wheel-arm wheel-executorch \
	wheel-executorch-arm

VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3 python3.13 python3.12 python3.11
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(p))))
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# A file of tests is one process's. A library's own threads would only be in the way of the other process.
PYTESTS := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile

# A plain torch brings gigabytes of CUDA on Linux: its CPU build is taken where the installer's settings list one.
TORCH := 2.13.0
# Compiled here once, and kept outside the tree.
LLAMACPP := 0.3.36
EXECUTORCH := $(shell sed -n 's/^version = "\(.*\)"/\1/p' native/executorch/pyproject.toml)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-vlm
WHEELS := $(CACHE)/wheels
MTMD := $(CACHE)/llama-mtmd-cli-$(LLAMACPP)
EXECUTORCH_WHEEL := $(WHEELS)/edge-vlm-executorch-$(EXECUTORCH)
EXECUTORCH_HERE := $(if $(filter Linux,$(shell uname -s)),$(EXECUTORCH_WHEEL))
EXECUTORCH_SOURCES := $(wildcard native/executorch/*.* native/executorch/*/*.*)

ARM := $(CACHE)/arm
ARM_WHEEL := $(WHEELS)/llama_cpp_python-$(LLAMACPP)-py3-none-linux_aarch64.whl
ARM_EXECUTORCH := $(WHEELS)/edge_vlm_executorch-$(EXECUTORCH)-py3-none-linux_aarch64.whl
ARM_GCC := aarch64-linux-gnu-gcc
ARM_GXX := aarch64-linux-gnu-g++
ARM_CMAKE := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=$(ARM_GCC) \
	-DCMAKE_CXX_COMPILER=$(ARM_GXX)
# Wheels that a Raspberry Pi OS of 2023 and newer can install, for Python 3.11 as it has it.
ARM_PIP := --platform linux_aarch64 $(foreach n,17 27 28 31 34 35 36,--platform manylinux_2_$(n)_aarch64) \
	--platform manylinux2014_aarch64 --python-version 3.11 --implementation cp --only-binary :all:
ANDROID := $(CACHE)/android
ANDROID_WORK := $(VENV)/android
APK := $(ANDROID_WORK)/edge-vlm-demo.apk
IOS := $(CACHE)/ios
ARM_TESTS := pytest hypothesis jsonschema jinja2 safetensors 'onnx>=1.20'

CHECKPOINT := exporters/demo/checkpoint
PICTURES := exporters/demo/pictures
BUNDLE := demo-bundle
SOURCES := $(wildcard $(CHECKPOINT)/*) $(shell find edge exporters runtimes -name '*.py' -not -path 'exporters/demo/*')

help:  ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-22s %s\n' "$$name" "$$text"; done

demo: $(BUNDLE)/manifest.json  ## install, export the demo checkpoint, ask it three questions
	$(BIN)/edge run $(BUNDLE) $(PICTURES)/shapes.png "What colour is the star?"
	$(BIN)/edge run $(BUNDLE) $(PICTURES)/sign.png "What does the sign say?"
	$(BIN)/edge run $(BUNDLE) $(PICTURES)/number.png "How many stars are there?"

check: lint  ## lint, types, tests/unit, tests/architecture and tests/server: under two minutes
	$(PYTESTS) tests/unit tests/architecture tests/server

lint: $(VENV)/installed-dev  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fmt: $(VENV)/installed-dev  ## sort imports and format
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

# To watch edge/ and runtimes/ is to slow down all that torch traces: what covers them needs no torch.
test: lint $(VENV)/legacy/installed  ## lint, types, all tests but those below
	$(PYTESTS) tests/unit tests/architecture tests/server tests/engine tests/fuzz tests/faults \
		--cov=edge --cov=runtimes --cov-report=term-missing:skip-covered --cov-fail-under=95
	$(PYTESTS) tests/export tests/e2e

test-llamacpp: $(MTMD) $(VENV)/installed-dev  ## the GGUF pair in llama.cpp's own multimodal CLI
	LLAMA_MTMD_CLI='$(MTMD)' $(PYTEST) tests/e2e -m mtmd

test-browser: $(VENV)/installed-dev  ## the pages of edge report and edge serve in headless Chromium
	browser=$$(scripts/browser) && echo "with $$browser" && BROWSER="$$browser" $(PYTEST) tests/e2e -m browser

test-remote: $(VENV)/installed-dev  ## edge bench --on against OpenSSH's own server
	@scripts/require-sshd
	$(PYTEST) tests/e2e -m sshd

test-arm: arm-site  ## the run side on emulated ARM processors
	EDGE_ARM='$(ARM)' $(PYTEST) tests/arm -m arm -rs

arm-site: arm-machine $(ARM_WHEEL) $(ARM_EXECUTORCH) $(VENV)/installed-dev
	@rm -rf '$(ARM)/source' '$(ARM)/site' && mkdir -p '$(ARM)/source'
	@cp -R edge runtimes exporters packages pyproject.toml README.md LICENSE '$(ARM)/source'
	@echo "installing the run side for Python 3.11 on ARM"
	@$(PIP) wheel --quiet --no-deps --wheel-dir '$(ARM)/source/dist' '$(ARM)/source' \
		'$(ARM)/source/packages/edge-vlm-export'
	@$(PIP) install --quiet --target '$(ARM)/site' $(ARM_PIP) --find-links '$(WHEELS)' $(ARM_TESTS) \
		"$$(ls '$(ARM)'/source/dist/edge_vlm-*.whl)[onnxruntime,llamacpp,litert,executorch-native,schema,serve,signatures]"
	@$(PIP) install --quiet --no-deps --target '$(ARM)/site' '$(ARM)'/source/dist/edge_vlm_export-*.whl  # what tests need of it

test-android: android-tools $(BUNDLE)/manifest.json  ## the Android demo's Kotlin on the JVM, to the last bit of Python's
	android_demo/test-core '$(ANDROID)' $(BIN)/python $(BUNDLE) $(ANDROID_WORK)/core

android: test-android apk-tools $(VENV)/installed-dev  ## the Android demo's APK: built, looked into, its dex tested
	android_demo/build-apk '$(ANDROID)' $(BIN)/python $(BUNDLE) $(ANDROID_WORK)
	android_demo/typecheck '$(ANDROID)' $(ANDROID_WORK)
	EDGE_APK='$(APK)' EDGE_ANDROID_TOOLS='$(ANDROID)' $(PYTEST) tests/android -m apk
	android_demo/test-dex '$(ANDROID)' $(BIN)/python $(BUNDLE) '$(APK)' $(ANDROID_WORK)/core

test-android-arm: arm-site apk-tools  ## the APK's arm64 libraries on emulated ARM processors, held to Python on them
	@test -e '$(APK)' || $(MAKE) android
	@tests/arm/make-machine '$(ARM)' java
	android_demo/test-arm '$(ANDROID)' $(BIN)/python '$(APK)' '$(ARM)' $(ANDROID_WORK)/core

apk-tools: android-tools
	@scripts/android-tools '$(ANDROID)' $(BIN)/python apk

android-tools: | $(BIN)/pip
	@scripts/android-tools '$(ANDROID)' $(BIN)/python

test-ios: ios-tools $(BUNDLE)/manifest.json  ## the iOS demo's Swift on Linux, to the last bit of Python's
	ios_demo/test-core '$(IOS)' $(BIN)/python $(BUNDLE) $(VENV)/ios
	ios_demo/typecheck '$(IOS)' $(VENV)/ios

ios-tools:
	@scripts/ios-tools '$(IOS)'

# Those that are here of 3.11 and newer.
PYTHONS ?= $(foreach p,python3.11 python3.12 python3.13,$(shell $(p) -c '' 2>/dev/null && command -v $(p)))
release: $(BUNDLE)/manifest.json  ## all distributions into dist/, installed and asked in fresh environments
	TORCH='torch==$(TORCH)' scripts/release $(BIN)/python dist $(BUNDLE) '$(WHEELS)' $(PYTHONS)

SECONDS := 60
fuzz: $(VENV)/installed-dev  ## mutations for every reader, for SECONDS=60; findings in fuzz-findings/
	@$(PIP) install --quiet --only-binary :all: 'atheris>=3,<4' || echo "without atheris: mutations are not guided" >&2
	$(BIN)/python tests/fuzz/fuzz.py $(SECONDS)

PARTS := 2500
fuzz-parts: $(VENV)/installed-dev  ## PARTS=2500 mutated parts through each native engine, in processes that may end
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/native_parts.py $(PARTS)

fuzz-native: $(VENV)/installed-dev  ## libFuzzer on the C++ of native/executorch, for SECONDS=60; needs clang
	scripts/fuzz-native $(BIN)/python $(SECONDS)

KILLS := 200
WRITES := 30
TOGETHER := 40
faults: $(BUNDLE)/manifest.json $(VENV)/installed-dev  ## kills (KILLS=200), failing writes and two at once, for every command that writes
	$(BIN)/python tests/faults/faults.py $(BUNDLE) kills $(KILLS)
	$(BIN)/python tests/faults/faults.py $(BUNDLE) writes $(WRITES)
	$(BIN)/python tests/faults/faults.py $(BUNDLE) together $(TOGETHER)

GUARDED := $(VENV)/guarded
guard: $(BUNDLE)/manifest.json $(GUARDED)/tflite/manifest.json  ## the newest engines compute the demo as the installed ones
	scripts/guard-newest $(BIN)/edge $(BIN)/python $(GUARDED)/newest $(BUNDLE) $(GUARDED)/tflite

$(GUARDED)/tflite/manifest.json: $(SOURCES) | $(VENV)/installed-export
	$(BIN)/edge export $(CHECKPOINT) -o $(GUARDED)/tflite --format tflite --calib calib_data

golden: $(VENV)/installed-dev  ## write the golden vectors of tests/golden anew
	$(BIN)/python tests/golden/write.py

arm-machine:
	@tests/arm/make-machine '$(ARM)'

wheel-arm: $(ARM_WHEEL) wheel-executorch-arm  ## llama-cpp-python and ExecuTorch for 64-bit ARM
	@echo "for 64-bit ARM, any Python 3: $(ARM_WHEEL)"

wheel-executorch: $(EXECUTORCH_WHEEL)  ## ExecuTorch without torch, for this machine
	@echo "for this machine, any Python 3: $$(cat '$(EXECUTORCH_WHEEL)')"

wheel-executorch-arm: $(ARM_EXECUTORCH)  ## ExecuTorch without torch, for 64-bit ARM
	@echo "for 64-bit ARM, any Python 3: $(ARM_EXECUTORCH)"

$(BUNDLE)/manifest.json: $(SOURCES) | $(VENV)/installed-export
	$(BIN)/edge export $(CHECKPOINT) -o $(BUNDLE) --calib calib_data

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer; hint: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "error: $(PYTHON) is not Python 3.11 or newer" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

INSTALL = torch=$(TORCH); \
	if $(PIP) index versions torch 2>/dev/null | grep -qF '$(TORCH)+cpu'; then torch=$(TORCH)+cpu; fi; \
	echo "installing torch $$torch and edge-vlm"; $(PIP) install --quiet "torch==$$torch"

$(VENV)/installed-export: pyproject.toml | $(BIN)/pip
	@$(INSTALL) -e '.[export]' -e packages/edge-vlm-export
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(WHEELS)/llama-cpp-python-$(LLAMACPP) $(EXECUTORCH_HERE) | $(BIN)/pip
	@$(INSTALL) --find-links '$(WHEELS)' --only-binary llama-cpp-python -e '.[dev,executorch-native]' \
		-e packages/edge-vlm-export
	@$(if $(EXECUTORCH_HERE),$(PIP) install --quiet --no-deps --force-reinstall "$$(cat '$(EXECUTORCH_HERE)')")
	@touch $@ $(VENV)/installed-export

# tflite-runtime wants a numpy and a Python of its own time: its tests run in an environment of their own.
$(VENV)/legacy/installed: pyproject.toml | $(BIN)/pip
	@mkdir -p $(VENV)/legacy
	@if command -v python3.11 >/dev/null; then echo "installing tflite-runtime into $(VENV)/legacy"; \
		python3.11 -m venv $(VENV)/legacy && \
		$(VENV)/legacy/bin/python -m pip --disable-pip-version-check install --quiet -e '.[tflite-runtime]'; \
	else echo "no python3.11: the tests of tflite-runtime are skipped"; fi
	@touch $@

$(WHEELS)/llama-cpp-python-$(LLAMACPP): | $(BIN)/pip
	@echo "building llama-cpp-python $(LLAMACPP): once, some 5 minutes on two cores"
	@$(PIP) wheel --quiet --no-deps --no-binary llama-cpp-python --wheel-dir '$(WHEELS)' 'llama-cpp-python==$(LLAMACPP)'
	@touch '$@'

$(MTMD): | $(BIN)/pip
	@scripts/build-mtmd $(BIN)/python $(LLAMACPP) '$@'

$(EXECUTORCH_WHEEL): $(EXECUTORCH_SOURCES) | $(BIN)/pip
	@echo "building edge-vlm-executorch $(EXECUTORCH): a quarter of a minute on two cores"
	@mkdir -p '$(WHEELS)' && scripts/build-executorch $(BIN)/python '$(WHEELS)' '' >'$@'

$(ARM_EXECUTORCH): $(EXECUTORCH_SOURCES) | $(BIN)/pip
	@scripts/arm-compiler $(ARM_GXX)
	@echo "building edge-vlm-executorch $(EXECUTORCH) for ARM"
	@_PYTHON_HOST_PLATFORM=linux-aarch64 scripts/build-executorch $(BIN)/python '$(WHEELS)' \
		'$(ARM_CMAKE)' $(ARM_PIP) >/dev/null && test -e '$@'

$(ARM_WHEEL): | $(BIN)/pip
	@scripts/build-arm-llamacpp $(BIN)/python $(LLAMACPP) '$@' $(ARM_GCC) $(ARM_GXX)
