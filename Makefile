# make demo   install everything into .venv and watch lpfs find the informative fields of a click log
# make test   install everything into .venv and run format check, lint, types and all tests
# make bench  measure the core set, in at most 20 minutes; bench-all: the full grid, in hours
# make emulate  every case of the emulator of GPUs, and the faults it must find, in an hour
# make sanitized  the operators' C++ checked while it runs under the tests of the CPU: addresses and
#             undefined behaviour; with SANITIZERS=thread, four threads
# make gpu    on a machine with a CUDA device and torch: the kernels' tests on it and the core set

PYTHON ?= python3
VENV ?= .venv
# Both can be overridden, see docs/guides/other-torch.md.
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt
PIP := $(VENV)/bin/pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Tests of kernels' PTX look here too, and skip where there is none.
export LPFS_EMULATOR ?= ../shared/ptx

.PHONY: demo test emulate sanitized bench bench-all gpu clean

demo: $(INSTALLED)
	rm -rf demo-run
	$(VENV)/bin/lpfs demo --out demo-run

test: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2

emulate: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 tests/kernels/emulated
	$(VENV)/bin/python $(LPFS_EMULATOR)/run.py --full
	$(VENV)/bin/python $(LPFS_EMULATOR)/run.py --controls

SANITIZERS ?= address,undefined
sanitized: $(INSTALLED)
	OMP_NUM_THREADS=2 $(VENV)/bin/python tests/kernels/sanitized.py $(SANITIZERS)

# fbgemm is an opponent; where it does not install, its rows are missing.
bench bench-all: $(INSTALLED)
	-$(PIP) install -q --no-deps fbgemm-gpu-cpu==1.8.0
	$(VENV)/bin/python -m bench $(if $(filter bench,$@),core --minutes 19,all)

gpu:
	$(PYTHON) tests/gpu/run.py

# torch comes first and the build is not isolated: an isolated one would download a second torch.
# Tests of other libraries' models skip where these do not install.
$(INSTALLED): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c $(CONSTRAINTS) $(TORCH) setuptools ninja numpy
	$(PIP) install -q -c $(CONSTRAINTS) --no-build-isolation -e ".[docs,test]"
	-$(PIP) install -q --no-deps -c $(CONSTRAINTS) torch-rechub deepctr-torch tqdm
	touch $@

clean:
	rm -rf $(VENV) build demo-run site docs/pictures *.egg-info lpfs_kernels/*.so .mypy_cache .ruff_cache .pytest_cache
