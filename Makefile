# Every target works on a machine that has python3, venv and make; the first makes .venv.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := .venv/.packages
INSTALLED := .venv/.installed
CPU := kernels/rnnkit_kernels/cpu

.PHONY: help demo demo-translation demo-tagging test test-quick lint bench soak clean

help:
	@echo "make demo   train a language model on Python's own documentation, in under two minutes"
	@echo "make demo-translation   train a model to read dates, in under two minutes"
	@echo "make demo-tagging       train a model to find names and dates, in under two minutes"
	@echo "make test   run the tests (real corpora too, where RNNKIT_DATA_DIR points to them)"
	@echo "make test-quick   the tests that start no process, compile nothing and train nothing"
	@echo "make lint   ruff, mypy --strict, and the arrows between folders (import-linter)"
	@echo "make bench  the layers beside torch.nn's, a few cases, with tables and charts"
	@echo "make soak   half an hour of kills, long runs and fuzzing, which stops by itself"
	@echo "make clean  remove .venv and caches"

$(PACKAGES): pyproject.toml setup.py constraints.txt
	@echo "installing into .venv: PyTorch and the rest are a large download the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Where the engine's sources alone have changed, it alone is built anew; without a compiler a sentence
# says so, and everything runs in PyTorch.
$(INSTALLED): $(PACKAGES) $(wildcard $(CPU)/engine/*) $(CPU)/build.py $(CPU)/sources.py
	@$(BIN)/python -m rnnkit_kernels.cpu.build >/dev/null || true
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python demos/language_modeling.py

demo-translation: $(INSTALLED)
	$(BIN)/python demos/translation.py

demo-tagging: $(INSTALLED)
	$(BIN)/python demos/tagging.py

# Two tests at a time, each with one thread; who is done takes half of what the other has left.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-quick: $(INSTALLED)
	$(BIN)/python -m pytest --quick -n 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(INSTALLED)
	$(BIN)/rnnkit bench --quick

soak: $(INSTALLED)
	$(BIN)/python -m tests.soak

clean:
	rm -rf .venv build *.egg-info $(CPU)/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
