# Every target sets up .venv by itself when it is missing or out of date.
# PYTHON=... chooses the interpreter (3.11 to 3.13); PROFILE=... the profile of `make batch`;
# STEMS=... the notebooks of `make rehearse` (all); OUT=... the folder for the measurements of `make bench`.

PROFILE ?= demo
OUT ?= runs/benchmarks
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test rehearse lab report bench batch lint clean

help:
	@echo "make demo    run every notebook on small synthetic data (minutes on two cores)"
	@echo "make test    run all tests: the package, and every notebook under nbval"
	@echo "make rehearse run every paper profile at its true counts, with tiny networks and pictures"
	@echo "make lab     open JupyterLab on the notebooks"
	@echo "make report  build the offline site from the runs there are"
	@echo "make bench   measure speed, each against a naive implementation"
	@echo "make batch   rerun a grid with Snakemake (PROFILE=demo, biq2021, paper)"
	@echo "make lint    check style and that notebooks are stored without outputs"
	@echo "make clean   delete runs/, checkpoints and feature caches included"

$(READY): requirements.lock pyproject.toml setup.sh
	@sh setup.sh

demo: $(READY)
	@$(BIN)/iqa demo

test: $(READY)
	@$(BIN)/python -m pytest

rehearse: $(READY)
	@$(BIN)/iqa rehearse $(STEMS)

lab: $(READY)
	@$(BIN)/jupyter lab --notebook-dir=notebooks

report: $(READY)
	@$(BIN)/iqa report

bench: $(READY)
	@mkdir -p $(OUT)
	@missed=0; for file in benchmarks/bench_*.py; do \
		echo "== $$file"; $(BIN)/python $$file --out $(OUT)/$$(basename $$file .py).json || missed=1; \
	done; exit $$missed

batch: $(READY)
	@$(BIN)/snakemake --snakefile workflow/Snakefile --profile workflow/profiles/local --config profile=$(PROFILE)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

clean:
	rm -rf runs .pytest_cache .ruff_cache .snakemake
