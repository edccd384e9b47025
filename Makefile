# The command index. Every target sets up what it needs; a second call is instant.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test lint bench image

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/: *.*## */: /' | column -t -s ':'

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo 'Python 3.10 or newer is needed; name one: make PYTHON=python3.12 ...'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo 'python -m venv failed; on Debian and Ubuntu: apt install python3-venv'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

install: $(STAMP)  ## .venv with everything

demo: $(STAMP)   ## LGL on the built-in synthetic corpus, with a report; minutes on two cores
	OMP_WAIT_POLICY=passive $(BIN)/python papers/lgl/main.py --demo

test: $(STAMP)   ## every test, three files at a time, long ones first
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)   ## ruff, format check, mypy on shared/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

image:           ## the Docker image, on NGC's PyTorch
	docker/build.sh

bench: $(STAMP)  ## every benchmark, as one table in benchmarks/README.md; about an hour
	$(BIN)/python benchmarks/run.py
