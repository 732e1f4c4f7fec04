# make demo: install, export the demo checkpoint, ask it three questions.   make test: lint, types, all tests.
# make test-llamacpp: the GGUF pair in llama.cpp's own multimodal CLI.
# make test-browser: the page of edge report in headless Chromium.
# make test-remote: edge bench --on against OpenSSH's own server.
# make test-arm: the run side on emulated ARM processors.   make wheel-arm: what 64-bit ARM has no wheels for.
# make wheel-executorch: ExecuTorch without torch, for this machine.   make wheel-executorch-arm: for 64-bit ARM.
# All keep their environment in .venv/ and need Python 3.11 or newer: make demo PYTHON=/path/to/python3.12

.DELETE_ON_ERROR:
.PHONY: demo test test-llamacpp test-browser test-remote test-arm arm-machine wheel-arm wheel-executorch wheel-executorch-arm lint

VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3 python3.13 python3.12 python3.11
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(p))))
# A plain torch brings gigabytes of CUDA on Linux: its CPU build is taken where the installer's settings list one.
TORCH := 2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check
# llama-cpp-python comes as sources: its wheel is built once, for this machine's processor, and kept outside the tree.
LLAMACPP := 0.3.36
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-vlm
WHEELS := $(CACHE)/wheels
# ExecuTorch without torch: libraries of its wheel, and what native/executorch adds. Its version is in the sources' too.
EXECUTORCH := 1.5.1
EXECUTORCH_WHEEL := $(WHEELS)/edge-vlm-executorch-$(EXECUTORCH)
EXECUTORCH_HERE := $(if $(filter Linux,$(shell uname -s)),$(EXECUTORCH_WHEEL))
EXECUTORCH_SOURCES := $(wildcard native/executorch/*.* native/executorch/*/*.*)
# Its sources hold llama.cpp's, whose multimodal CLI is built once as well: one file without libraries of its own.
MTMD := $(CACHE)/llama-mtmd-cli-$(LLAMACPP)
MTMD_BUILD := $(MTMD).build
MTMD_OPTIONS := -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
# What make test-arm needs: the emulated machine, and llama-cpp-python for it, compiled here.
ARM := $(CACHE)/arm
ARM_WHEEL := $(WHEELS)/llama_cpp_python-$(LLAMACPP)-py3-none-linux_aarch64.whl
ARM_BUILD := $(ARM_WHEEL).build
ARM_EXECUTORCH := $(WHEELS)/edge_vlm_executorch-$(EXECUTORCH)-py3-none-linux_aarch64.whl
ARM_GCC := aarch64-linux-gnu-gcc
ARM_GXX := aarch64-linux-gnu-g++
ARM_CMAKE := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=$(ARM_GCC) \
	-DCMAKE_CXX_COMPILER=$(ARM_GXX)
# One library of kernels for each generation of processors: the best one is chosen when they are loaded.
ARM_OPTIONS := $(ARM_CMAKE) -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON \
	-DCMAKE_INSTALL_BINDIR=llama_cpp/lib \
	-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=OFF
# Wheels that a Raspberry Pi OS of 2023 and newer can install, for Python 3.11 as it has it.
ARM_PIP := --platform linux_aarch64 $(foreach n,17 27 28 31 34 35 36,--platform manylinux_2_$(n)_aarch64) \
	--platform manylinux2014_aarch64 --python-version 3.11 --implementation cp --only-binary :all:
ARM_TESTS := pytest hypothesis jsonschema jinja2 'onnx>=1.20'
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable chrome microsoft-edge
CORES := $(shell getconf _NPROCESSORS_ONLN)
INSTALL = torch=$(TORCH); \
	if $(PIP) index versions torch 2>/dev/null | grep -qF '$(TORCH)+cpu'; then torch=$(TORCH)+cpu; fi; \
	echo "installing torch $$torch and edge-vlm"; $(PIP) install --quiet "torch==$$torch"

# tflite-runtime wants a numpy and a Python of its own time: its tests run in an environment beside.
LEGACY := $(VENV)/legacy

CHECKPOINT := exporters/demo/checkpoint
PICTURES := exporters/demo/pictures
BUNDLE := demo-bundle
SOURCES := $(wildcard $(CHECKPOINT)/*) $(shell find edge exporters runtimes -name '*.py' -not -path 'exporters/demo/*')

demo: $(BUNDLE)/manifest.json
	$(BIN)/edge run $(BUNDLE) $(PICTURES)/shapes.png "What colour is the star?"
	$(BIN)/edge run $(BUNDLE) $(PICTURES)/sign.png "What does the sign say?"
	$(BIN)/edge run $(BUNDLE) $(PICTURES)/number.png "How many stars are there?"

test: lint $(LEGACY)/installed
	$(BIN)/python -m pytest tests/unit tests/architecture tests/engine tests/export tests/e2e \
		--cov=edge --cov=runtimes --cov-report=term-missing:skip-covered --cov-fail-under=95

test-llamacpp: $(MTMD) $(VENV)/installed-dev
	LLAMA_MTMD_CLI='$(MTMD)' $(BIN)/python -m pytest tests/e2e -m mtmd

test-browser: $(VENV)/installed-dev
	@look() { for name in $(BROWSERS); do command -v $$name && return; done; return 1; }; \
		install() { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing chromium" >&2 && \
			apt-get -qq update >&2 && \
			DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium >/dev/null; }; \
		browser="$${BROWSER:-$$(look || { install && look; })}"; \
		test -n "$$browser" || { \
			echo "error: no Chromium or Chrome: the page of edge report cannot be looked at;" \
				"hint: install one, or BROWSER=/path/to/one" >&2; exit 1; }; \
		echo "with $$browser"; BROWSER="$$browser" $(BIN)/python -m pytest tests/e2e -m browser

test-remote: $(VENV)/installed-dev
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; command -v sshd >/dev/null || { \
		echo "error: no sshd: the tests against OpenSSH's server cannot run; hint: install openssh-server" >&2; exit 1; }
	@test "$$(id -u)" != 0 || test -d /run/sshd || test "$$(uname)" != Linux || { \
		echo "error: sshd run by root wants /run/sshd; hint: mkdir -p /run/sshd, or run this as a user" >&2; exit 1; }
	$(BIN)/python -m pytest tests/e2e -m sshd

arm-machine:
	@tests/arm/make-machine '$(ARM)'

test-arm: arm-machine $(ARM_WHEEL) $(ARM_EXECUTORCH) $(VENV)/installed-dev
	@rm -rf '$(ARM)/source' '$(ARM)/site' && mkdir -p '$(ARM)/source'
	@cp -R edge runtimes exporters pyproject.toml README.md LICENSE '$(ARM)/source'
	@echo "installing the run side for Python 3.11 on ARM"
	@$(PIP) wheel --quiet --no-deps --wheel-dir '$(ARM)/source/dist' '$(ARM)/source'
	@$(PIP) install --quiet --target '$(ARM)/site' $(ARM_PIP) --find-links '$(WHEELS)' $(ARM_TESTS) \
		"$$(ls '$(ARM)'/source/dist/*.whl)[onnxruntime,llamacpp,litert,executorch-native]"
	EDGE_ARM='$(ARM)' $(BIN)/python -m pytest tests/arm -m arm -rs

wheel-arm: $(ARM_WHEEL) wheel-executorch-arm
	@echo "for 64-bit ARM, any Python 3: $(ARM_WHEEL)"

wheel-executorch-arm: $(ARM_EXECUTORCH)
	@echo "for 64-bit ARM, any Python 3: $(ARM_EXECUTORCH)"

wheel-executorch: $(EXECUTORCH_WHEEL)
	@echo "for this machine, any Python 3: $$(cat '$(EXECUTORCH_WHEEL)')"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BUNDLE)/manifest.json: $(SOURCES) | $(VENV)/installed-export
	$(BIN)/edge export $(CHECKPOINT) -o $(BUNDLE) --calib calib_data

$(VENV)/installed-export: pyproject.toml | $(BIN)/pip
	@$(INSTALL) -e '.[export]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(WHEELS)/llama-cpp-python-$(LLAMACPP) $(EXECUTORCH_HERE) | $(BIN)/pip
	@$(INSTALL) --find-links '$(WHEELS)' --only-binary llama-cpp-python -e '.[dev,executorch-native]'
	@$(if $(EXECUTORCH_HERE),$(PIP) install --quiet --no-deps --force-reinstall "$$(cat '$(EXECUTORCH_HERE)')")
	@touch $@ $(VENV)/installed-export

$(LEGACY)/installed: pyproject.toml | $(BIN)/pip
	@mkdir -p $(LEGACY)
	@if command -v python3.11 >/dev/null; then echo "installing tflite-runtime into $(LEGACY)"; \
		python3.11 -m venv $(LEGACY) && \
		$(LEGACY)/bin/python -m pip --disable-pip-version-check install --quiet -e '.[tflite-runtime]'; \
	else echo "no python3.11: the tests of tflite-runtime are skipped"; fi
	@touch $@

$(WHEELS)/llama-cpp-python-$(LLAMACPP): | $(BIN)/pip
	@echo "building llama-cpp-python $(LLAMACPP): once, some 5 minutes on two cores"
	@$(PIP) wheel --quiet --no-deps --no-binary llama-cpp-python --wheel-dir '$(WHEELS)' 'llama-cpp-python==$(LLAMACPP)'
	@touch '$@'

$(MTMD): | $(BIN)/pip
	@command -v "$${CXX:-c++}" >/dev/null || { \
		echo "error: no C++ compiler ($${CXX:-c++}): llama.cpp's multimodal CLI cannot be built, nor tested;" \
			"hint: install g++ or clang, or CXX=/path/to/one" >&2; exit 1; }
	@echo "building llama.cpp's multimodal CLI of llama-cpp-python $(LLAMACPP): once, some 7 minutes on two cores"
	@rm -rf '$(MTMD_BUILD)' && mkdir -p '$(MTMD_BUILD)'
	@$(PIP) download --quiet --no-deps --no-binary llama-cpp-python --dest '$(MTMD_BUILD)' 'llama-cpp-python==$(LLAMACPP)'
	@tar -xzf '$(MTMD_BUILD)'/llama_cpp_python-*.tar.gz -C '$(MTMD_BUILD)' --strip-components 1
	@cmake=cmake; command -v cmake >/dev/null || { $(PIP) install --quiet cmake; cmake=$(BIN)/cmake; }; \
		$$cmake -S '$(MTMD_BUILD)/vendor/llama.cpp' -B '$(MTMD_BUILD)/made' $(MTMD_OPTIONS) >'$(MTMD_BUILD)/log' 2>&1 && \
		$$cmake --build '$(MTMD_BUILD)/made' --target llama-mtmd-cli --parallel $(CORES) >>'$(MTMD_BUILD)/log' 2>&1 || \
		{ tail -n 30 '$(MTMD_BUILD)/log' >&2; exit 1; }
	@cp '$(MTMD_BUILD)/made/bin/llama-mtmd-cli' '$@' && rm -rf '$(MTMD_BUILD)'

# $(1): a folder to work in; $(2): what pip is told of the machine; $(3): settings of cmake's; $(4): of the environment.
define executorch_wheel
	@rm -rf '$(1)' && mkdir -p '$(1)/dist'
	@$(PIP) download --quiet --no-deps --only-binary :all: $(2) --dest '$(1)' 'executorch==$(EXECUTORCH)'
	@$(BIN)/python -m zipfile -e '$(1)'/executorch-*.whl '$(1)/executorch'
	@CMAKE_ARGS='-DEXECUTORCH=$(1)/executorch $(3)' $(4) $(PIP) wheel --quiet --no-deps --wheel-dir '$(1)/dist' native/executorch
	@for made in '$(1)'/dist/*.whl; do mv "$$made" '$(WHEELS)' && echo "$(WHEELS)/$${made##*/}" >'$(1)/name'; done
endef

$(EXECUTORCH_WHEEL): $(EXECUTORCH_SOURCES) | $(BIN)/pip
	@echo "building edge-vlm-executorch $(EXECUTORCH): a quarter of a minute on two cores"
	$(call executorch_wheel,$@.build)
	@mv '$@.build/name' '$@' && rm -rf '$@.build'

$(ARM_EXECUTORCH): $(EXECUTORCH_SOURCES) | $(BIN)/pip
	$(arm_compiler)
	@echo "building edge-vlm-executorch $(EXECUTORCH) for ARM"
	$(call executorch_wheel,$@.build,$(ARM_PIP),$(ARM_CMAKE),_PYTHON_HOST_PLATFORM=linux-aarch64)
	@rm -rf '$@.build' && test -e '$@'

define arm_compiler
	@install() { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing g++-aarch64-linux-gnu" && \
			apt-get -qq update && \
			DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes g++-aarch64-linux-gnu >/dev/null; }; \
		command -v $(ARM_GXX) >/dev/null || install || { \
		echo "error: no $(ARM_GXX): nothing can be compiled for ARM;" \
			"hint: install g++-aarch64-linux-gnu, or ARM_GXX=/path/to/one and ARM_GCC" >&2; exit 1; }
endef

$(ARM_WHEEL): | $(BIN)/pip
	$(arm_compiler)
	@echo "building llama-cpp-python $(LLAMACPP) for ARM: once, some 5 minutes on two cores"
	@rm -rf '$(ARM_BUILD)' && mkdir -p '$(ARM_BUILD)'
	@$(PIP) download --quiet --no-deps --no-binary llama-cpp-python --dest '$(ARM_BUILD)' 'llama-cpp-python==$(LLAMACPP)'
	@tar -xzf '$(ARM_BUILD)'/llama_cpp_python-*.tar.gz -C '$(ARM_BUILD)' --strip-components 1
	@# Its own settings build what is not installed; and older compilers know nothing of SME.
	@sed -i 's/LLAMA_BUILD_COMMON ON/LLAMA_BUILD_COMMON OFF/' '$(ARM_BUILD)/CMakeLists.txt'
	@$(ARM_GXX) -march=armv9.2-a+sme -x c++ -fsyntax-only /dev/null 2>/dev/null || \
		sed -i '/armv9\.2_/d' '$(ARM_BUILD)/vendor/llama.cpp/ggml/src/CMakeLists.txt'
	@_PYTHON_HOST_PLATFORM=linux-aarch64 CMAKE_ARGS='$(ARM_OPTIONS)' \
		$(PIP) wheel --quiet --no-deps --wheel-dir '$(WHEELS)' '$(ARM_BUILD)'
	@rm -rf '$(ARM_BUILD)' && test -e '$@'

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer; hint: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "error: $(PYTHON) is not Python 3.11 or newer" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
