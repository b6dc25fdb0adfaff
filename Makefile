# Every target sets up .venv by itself when it is missing or out of date.
# PYTHON=... chooses the interpreter (3.11 to 3.13); PROFILE=... the profile of `make batch`;
# STEMS=... the notebooks of `make rehearse` (all), and its options;
# OUT=... the folder for the measurements of `make bench`;
# TORCH=cpu makes .venv with PyTorch's CPU build, a quarter of the size.

PROFILE ?= demo
OUT ?= runs/benchmarks
BIN := .venv/bin
# what JupyterLab adds to a notebook that it saves, beside outputs and counts
WRITTEN := $(addprefix metadata.language_info.,codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version)
READY := .venv/.ready

.PHONY: help setup demo test check rehearse attack lab hooks report bench batch lint clean

help:
	@echo "make setup   make .venv, as every other target does where it is missing"
	@echo "             (TORCH=cpu, with any target: PyTorch's CPU build, a quarter of the size)"
	@echo "make demo    run every notebook on small synthetic data (minutes on two cores)"
	@echo "make test    run all tests: the package, and every notebook under nbval"
	@echo "make check   run the fast tests: no notebook, no server, no long run"
	@echo "make rehearse run every paper profile at its true counts, with tiny networks and pictures"
	@echo "             (STEMS=--keep-times: keep what each took in figures/rehearsal/times.json)"
	@echo "make attack  faults, kills, full disks and mutants against all of it (takes hours)"
	@echo "make lab     open JupyterLab on an index of the notebooks"
	@echo "make hooks   let git check commits and drop what JupyterLab writes into notebooks"
	@echo "make report  build the offline site from the runs there are"
	@echo "make bench   measure speed, each against a naive implementation"
	@echo "make batch   rerun a grid with Snakemake (PROFILE=demo, biq2021, rehearsal, paper)"
	@echo "make lint    check style and that notebooks are stored without outputs"
	@echo "make clean   delete runs/, checkpoints and feature caches included"

$(READY): requirements.lock pyproject.toml setup.sh
	@TORCH=$(TORCH) sh setup.sh

setup: $(READY)

demo: $(READY)
	@$(BIN)/iqa demo

test: $(READY)
	@$(BIN)/python -m pytest

check: $(READY)
	@$(BIN)/python -m pytest -m "not slow and not gpu and not system" --ignore tests/golden tests

rehearse: $(READY)
	@$(BIN)/iqa rehearse $(STEMS)

attack: $(READY)
	@$(BIN)/python -m tests.attack

lab: $(READY)
	@$(BIN)/python -c "from iqa_utils.workshop.report import write_index; write_index()"
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/runs/index.ipynb \
		--LabApp.app_settings_dir=$(CURDIR)/.jupyter

hooks: $(READY)
	@$(BIN)/pre-commit install
	@git config filter.notebook.clean "$(BIN)/nbstripout --keep-id --extra-keys '$(WRITTEN)'"

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
