# Targets are what CI runs. PYTHON: the interpreter that makes the virtual environment (3.10 - 3.12).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: demo bench bench-full plugin test test-slow test-gpu lint clean

$(INSTALLED): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing PyTorch, ONNX, ModelOpt and TensorRT-RTX into $(VENV): some 7 GB, some minutes"
	$(BIN)/python -m pip install --quiet --progress-bar on -e '.[dev]'
	touch $@

demo: $(INSTALLED)  ## tune, merge, export, build engines, compare: demo/report.html
	$(BIN)/python demo/run.py

bench: $(INSTALLED)  ## short runs of the benchmarks with the tiny network: benchmarks/out/report.html
	$(BIN)/python benchmarks/suite.py

bench-full: $(INSTALLED)  ## the benchmarks as they are published, on a machine that does nothing else: about an hour
	$(BIN)/python benchmarks/suite.py --full

plugin:  ## the CUDA kernels and the TensorRT plugin, and their host tests; TENSORRT_ROOT: where TensorRT's headers are
	cmake -B build $(if $(TENSORRT_ROOT),-DTENSORRT_ROOT=$(TENSORRT_ROOT))
	cmake --build build --parallel
	ctest --test-dir build --output-on-failure
	@test -f build/libtalent_plugin.so || { echo "no TensorRT plugin was made: see above what cmake left out, and why"; exit 1; }

test: $(INSTALLED)  ## the tests, without the slow ones; WORKERS of them at once, of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-slow: $(INSTALLED)  ## the tests that take minutes (the base preset's engines)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow and not gpu"

test-gpu: $(INSTALLED) plugin  ## the tests that need an NVIDIA GPU, and the kernels under NVIDIA's sanitizers
	$(BIN)/python -m pytest -m gpu
	for tool in memcheck racecheck initcheck synccheck; do for kernels in rca pictures; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python tests/csrc/sanitize_$$kernels.py || exit 1; \
	  done; done

lint: $(INSTALLED)
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build dist demo/out demo/report.html demo/report.json benchmarks/out *.egg-info
