# squarehead: `make run` and `make test` need nothing but Python >= 3.11; they create .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
TABLE ?=
SWEEP ?= sparsity=0.5,0.6,0.7,0.8 distill=ce,kd,squarehead
QUIET := MLFLOW_DISABLE_TELEMETRY=true TOKENIZERS_PARALLELISM=false
TESTING := $(QUIET) HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg
NATIVE := engine/sources.py $(wildcard engine/native/*)
DIGEST = $$($(BIN)/python -c 'from engine import sources; print(sources.digest())')
SANITIZED := build/sanitized/kernels.so
SINCE ?= $(shell git describe --tags --abbrev=0 2>/dev/null || git merge-base HEAD origin/HEAD 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help env run plan sweep watch test zoo chaos sanitize sanitize-changed lint docs reproduce report dashboard verify \
	gc clean bench-env-onnxruntime bench-env-deepsparse bench-env-llamacpp

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  More options for run, plan, sweep: ARGS="sparsity=0.7 distill=kd"; all of them: $(BIN)/python -m pipeline --help'

env: .venv/.installed .venv/.kernels ## Create .venv with everything (run and test do it themselves)

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,joblib]'
	@touch $@

# where there is no C++ compiler this leaves the engine without kernels, which says so when it is asked for; every
# later make tries again
.venv/.kernels: .venv/.installed setup.py $(NATIVE)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@if grep -qs "$(DIGEST)" engine/_kernels*.so; then touch $@; fi

run: env ## Run the main job: SmolLM2-135M to 50 % sparsity, int8, evaluated and benchmarked
	$(QUIET) $(BIN)/python -m pipeline experiment=quickstart $(ARGS)

plan: env ## Say what `make run` would run, and why
	@$(QUIET) $(BIN)/python -m pipeline experiment=quickstart dry_run=true $(ARGS)

sweep: env ## Run a sweep: SWEEP="sparsity=0.5,0.7 distill=ce,squarehead"
	$(QUIET) $(BIN)/python -m pipeline -m experiment=quickstart $(SWEEP) $(ARGS)

watch: env ## Watch the sweep that runs, or the next that begins, from another terminal
	@$(BIN)/python -m pipeline.sweeps watch $(ARGS)

reproduce: env ## Run a table of the paper, print ours beside theirs: TABLE=local/whisper; without TABLE, list them
	@$(QUIET) $(BIN)/python -m pipeline.reproduce $(TABLE) $(ARGS)

report: env ## Report the newest run or sweep: tables here, report.html and more beside it
	@$(BIN)/python -m pipeline.report $(ARGS)

dashboard: env ## Serve MLflow on 127.0.0.1 with the experiment open
	$(QUIET) $(BIN)/python -m pipeline.dashboard $(ARGS)

test: env ## Run the tests
	$(TESTING) $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

zoo: env ## Take every architecture that can be built small through all stages; writes docs/models.md (a quarter of an hour)
	$(TESTING) $(BIN)/python -m tests.model_zoo $(ARGS)

chaos: env ## Kill, starve and damage small runs in every way, count what is at fault (an hour; goes on where it ended)
	$(TESTING) $(BIN)/python -m tests.chaos $(ARGS)

# the sanitizer's library must come first, and C++'s with it: torch throws, and that is watched too; it reports to the
# terminal and ends the process, so pytest must not capture that
sanitize: $(SANITIZED) ## Run the engine's tests with its kernels under address and undefined-behaviour sanitizers
	$(TESTING) SQUAREHEAD_KERNELS=$(CURDIR)/$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest --capture=sys tests/engine/test_engine_kernels.py tests/engine/test_engine_models.py \
		tests/engine/test_engine_decoder_seq2seq.py tests/engine/test_engine_generation.py $(ARGS)

sanitize-changed: ## Run `make sanitize` where engine/native differs from SINCE (the last tag, or where the branch began)
	@if [ -n "$(SINCE)" ] && git diff --quiet "$(SINCE)" -- engine/native; then \
		echo "engine/native is as in $(SINCE): nothing to sanitize"; \
	else $(MAKE) sanitize; fi

$(SANITIZED): $(NATIVE) | env
	mkdir -p $(@D)
	$(CXX) -shared -fPIC -std=c++17 -g -O1 -fno-omit-frame-pointer -fopenmp \
		-fsanitize=address,undefined -fno-sanitize-recover=undefined \
		-DSQUAREHEAD_SOURCES="\"$(DIGEST)\"" \
		engine/native/*.cpp -o $@

docs: env ## Build the documentation as a site, build/site/index.html; a broken link fails
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

lint: env ## ruff, mypy and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

bench-env-onnxruntime: env ## Install ONNX Runtime, to benchmark against it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'

bench-env-deepsparse: bench-env-onnxruntime ## Make .venv-deepsparse, to benchmark against it (licence: evaluation only)
	$(BIN)/python -m engine.peers deepsparse

bench-env-llamacpp: env ## Make .venv-llamacpp, to benchmark against it (compiles for minutes)
	$(BIN)/python -m engine.peers llamacpp

verify: env ## Check every stored file against its sha256
	@$(BIN)/python -m pipeline.store verify $(ARGS)

gc: env ## Show what could be deleted from the store; ARGS=--yes deletes
	@$(BIN)/python -m pipeline.store gc $(ARGS)

clean: ## Delete caches of tools; the store and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find pipeline stages engine hydra_plugins tests conf -name __pycache__ -type d -prune -exec rm -rf {} +
