# make demo: install, export the demo checkpoint, ask it three questions.   make test: lint, types, all tests.
# make test-llamacpp: the GGUF pair in llama.cpp's own multimodal CLI.
# make test-browser: the page of edge report in headless Chromium.
# All keep their environment in .venv/ and need Python 3.11 or newer: make demo PYTHON=/path/to/python3.12

.DELETE_ON_ERROR:
.PHONY: demo test test-llamacpp test-browser lint

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
# Its sources hold llama.cpp's, whose multimodal CLI is built once as well: one file without libraries of its own.
MTMD := $(CACHE)/llama-mtmd-cli-$(LLAMACPP)
MTMD_BUILD := $(MTMD).build
MTMD_OPTIONS := -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
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

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BUNDLE)/manifest.json: $(SOURCES) | $(VENV)/installed-export
	$(BIN)/edge export $(CHECKPOINT) -o $(BUNDLE) --calib calib_data

$(VENV)/installed-export: pyproject.toml | $(BIN)/pip
	@$(INSTALL) -e '.[export]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(WHEELS)/llama-cpp-python-$(LLAMACPP) | $(BIN)/pip
	@$(INSTALL) --find-links '$(WHEELS)' --only-binary llama-cpp-python -e '.[dev]'
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

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer; hint: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "error: $(PYTHON) is not Python 3.11 or newer" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
