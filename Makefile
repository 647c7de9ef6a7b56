# Needs Python 3.10 or newer and make. `make demo` and `make test` install into .venv by themselves, once.
#   make demo [PICTURE=photo.jpg]   draw the boxes that the bundled detector finds
#   make test | lint | bench | docs
# On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu fetches the small build of torch.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# A stamp says which extras the environment holds; it is renewed when the requirements change.
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test
DOCS_STAMP := $(VENV)/.installed-docs
$(DEMO_STAMP): EXTRAS := demo
$(TEST_STAMP): EXTRAS := train,export,fast,demo,dev
$(DOCS_STAMP): EXTRAS := docs

.PHONY: demo test lint bench docs

demo: $(DEMO_STAMP)
	$(BIN)/efficientdet demo $(if $(PICTURE),"$(PICTURE)")

# Left to itself, xdist starts a new process for one that died, and then waits for ever.
test: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --max-worker-restart 0

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(TEST_STAMP)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/start.py

docs: $(DOCS_STAMP)
	$(BIN)/mkdocs build --strict

# `python -m pip`, since a virtual environment's pip script breaks when its folder is moved.
$(DEMO_STAMP) $(TEST_STAMP) $(DOCS_STAMP): pyproject.toml constraints.txt
	@echo "installing efficientdet[$(EXTRAS)] into $(VENV); the first time takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
