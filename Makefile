# Only python3 (3.11-3.13) and make are needed; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.8

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.PHONY: demo test test-gpu lint bench bench-gpu bench-search chaos chaos-mutants clean lock wheel screenshots

demo: $(STAMP)  ## Search on scikit-learn's digits, ending with leaderboard and report
	@name=digits-$$(date +%Y%m%d-%H%M%S); \
	$(BIN)/spiketune search spaces/digits.yaml --name $$name && \
	$(BIN)/spiketune status

test: export OMP_NUM_THREADS ?= 1
# Three processes on two cores: a third of the time tests wait for Ray, servers and browsers. In the
# order of the folders: files of few and long tests first, that none runs alone in the end.
test: lint  ## Lint, types and every fast test
	$(BIN)/python -m pytest -m 'not slow' -n 3 --dist loadfile --no-loadscope-reorder \
	  --timeout 900 --session-timeout 4200 \
	  tests/integration tests/chaos tests/contract tests/unit

test-gpu: $(STAMP)  ## Tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu

lint: $(STAMP)  ## ruff and strict mypy over the whole tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: export PYTHONPATH := tests/integration:tests/chaos
bench: $(STAMP)  ## Speed, as ratios measured in one run
	$(BIN)/python -m tests.benchmarks

bench-gpu: $(STAMP)  ## Training steps, memory and packed trials on a GPU, as a Markdown table
	$(BIN)/python -m tests.benchmarks.gpu

bench-search: export OMP_NUM_THREADS ?= 1
bench-search: $(STAMP)  ## Regret of samplers and stopping rules on tables of learning curves
	$(BIN)/python -m tests.benchmarks.search --results build/bench-search

chaos: export OMP_NUM_THREADS ?= 1
chaos: $(STAMP)  ## The whole fault matrix: an hour and more
	$(BIN)/python -m pytest tests/chaos
	$(BIN)/python -m pytest -m slow tests/unit tests/contract tests/integration

chaos-mutants: export OMP_NUM_THREADS ?= 1
chaos-mutants: $(STAMP)  ## Plant bugs in a copy of the tree; the fault tests must catch each
	$(BIN)/python tests/chaos/mutants.py

wheel: $(STAMP)  ## dist/: the wheel and the locks that a cluster's machines install
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist
	cp requirements.lock cluster/head.lock dist

screenshots: export PYTHONPATH := .:tests/integration
screenshots: $(STAMP)  ## The README's pictures, from a real search in a headless Chromium
	$(BIN)/python -m tests.screenshots

clean:  ## Remove everything that was built or recorded
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: $(STAMP)  ## Pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra cuda --extra postgres --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --output-file requirements.lock --quiet
	$(BIN)/uv pip compile cluster/head.in --constraint requirements.lock --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --output-file cluster/head.lock --quiet

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	    "set PYTHON=/path/to/python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv failed: on Debian, apt-get install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "Installing the locked packages into $(VENV) ..."
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
