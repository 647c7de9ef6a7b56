# Needs Python 3.10 or newer and make. Every target installs what it needs into .venv, once.
#   make demo [IMAGE=photo.jpg]   draw the boxes that the bundled detector finds
#   make test | lint | docs [STRICT=1] | bench
# On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu fetches the small build of torch.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# A stamp says what the environment holds; it is renewed when the requirements change.
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test
DOCS_STAMP := $(VENV)/.installed-docs
$(DEMO_STAMP): WANTED := -e '.[demo]'
$(TEST_STAMP): WANTED := -e '.[train,data,export,fast,demo,tune,serve]' --group dev
$(DOCS_STAMP): WANTED := -e '.[fast,demo]' --group docs

.PHONY: demo test lint docs bench

demo: $(DEMO_STAMP)
	$(BIN)/efficientdet demo $(if $(IMAGE),"$(IMAGE)")

# Left to itself, xdist starts a new process for one that died, and then waits for ever.
test: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/hadolint docker/Dockerfile

docs: $(DOCS_STAMP)
	$(BIN)/python docs/generate.py $(if $(STRICT),--strict)
	$(BIN)/zensical build --strict

bench: $(TEST_STAMP)
	$(BIN)/python benchmarks/run.py

# `python -m pip`, since a virtual environment's pip script breaks when its folder is moved.
$(DEMO_STAMP) $(TEST_STAMP) $(DOCS_STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): $(WANTED); the first time takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt pip
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(WANTED)
	@touch $@
