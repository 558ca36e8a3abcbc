# Every target creates the virtual environment it needs. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
TESTS := tests
QUICK := tests/data tests/numerics tests/test_config*.py tests/test_fingerprint.py tests/test_goldens.py tests/test_layering.py tests/test_plain_english.py tests/test_constraints.py tests/docs/test_habits.py
BIN := $(VENV)/bin
# Python compiles each module at its first import and keeps the result, even if the environment disables that. pip would compile
# everything, which takes longer than the rest of the installation.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# Some tests need programs that make cannot install. Without them, make skips these tests and reports it.
CHROMIUM = $(shell command -v chromium chromium-browser google-chrome)
PROMETHEUS = $(and $(shell command -v prometheus),$(shell command -v promtool))

.PHONY: demo test quick tutorials fuzz soak lint types bench gpu-check docs docs-serve clean

demo: $(VENV)/.run  ## the whole study on the embedded laboratory; ends by naming the report
	$(BIN)/raysweep demo --fresh

test: $(VENV)/.test  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not soak and ($(if $(CHROMIUM),browser or )not browser) and ($(if $(PROMETHEUS),prometheus or )not prometheus)" $(TESTS)
	@$(if $(CHROMIUM),,echo "Chromium is not installed: skipped the browser tests of the report page")
	@$(if $(PROMETHEUS),,echo "Prometheus is not installed (Debian's package prometheus): skipped the tests of the dashboards' queries and alerts")

quick: $(VENV)/.test  ## the tests that need neither Ray nor whole runs: under two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -x -n 2 --dist loadfile $(QUICK)

tutorials: $(VENV)/.test  ## execute the notebooks in docs/tutorials again and save their outputs
	$(BIN)/python .ci/tutorials.py

fuzz: $(VENV)/.test  ## random configs, records and checkpoints for a minute, different ones each time
	OMP_NUM_THREADS=1 RAYSWEEP_FUZZ_SECONDS=60 RAYSWEEP_FUZZ_SEED=$${RAYSWEEP_FUZZ_SEED:-$$(date +%s)} $(BIN)/python -m pytest -q -s tests/test_fuzz.py tests/test_resource_bombs.py -m "not soak"

soak: $(VENV)/.test  ## twenty rounds of SIGKILL, SIGTERM and SIGSTOP to a worker, a raylet or the driver of a run on two Ray nodes and S3; long tests
	OMP_NUM_THREADS=1 RAYSWEEP_KILLS=20 $(BIN)/python -m pytest -q tests/engine/test_ray_kill.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m soak tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

bench: $(VENV)/.test  ## most figures in docs/benchmarks.md, which names the rest
	$(PIP) --editable '.[test,bench]'
	cd benchmarks && for file in exact_cka resamples measures layer_time all_windows gradient_estimate early_stopping against_loops generation weights_check digested_loading storage driver_cost ray_workers simulation plan_accuracy paper_plans laboratory demo; do ../$(BIN)/python $$file.py || exit 1; done

gpu-check: $(VENV)/.run  ## every path on one GPU against the CPU, speed and memory: 8 minutes at most; figures in gpu_check.json
	$(BIN)/python benchmarks/gpu_check.py

docs: $(VENV)/.docs  ## the documentation site, in site/index.html; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "docs: site/index.html"

docs-serve: $(VENV)/.docs  ## the documentation site at http://127.0.0.1:8000, built again whenever a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[test]'
	touch $(VENV)/.run $@

$(VENV)/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[docs]'
	touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) runs site .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
