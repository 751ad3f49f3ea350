# Stages and files only: what a run computes stands in settings/ and in dwa_core/presets.py.
PROFILE ?= demo
PYTHON ?= python3

VENV := .venv
ENVIRONMENT := $(VENV)/installed
# `make reproduce MAX_MINUTES=230`: a time budget for the whole call. What is stopped then goes on at the next one.
BUDGET := $(if $(MAX_MINUTES),--max-minutes $(MAX_MINUTES) --since $(shell date +%s))
RUN := $(VENV)/bin/python notebooks/run.py
comma := ,
# Every rule is written out: make need not try its own on some thousand names.
MAKEFLAGS += --no-builtin-rules
ifeq ($(PROFILE) $(or $(filter-out reproduce table-% figure-% what-%,$(MAKECMDGOALS)),$(if $(MAKECMDGOALS),,none)),demo )
# Most of a run of the demo is the start of a kernel: two at a time, with one thread each.
MAKEFLAGS += --jobs=2
export OMP_NUM_THREADS ?= 1
endif
# Targets lie in this folder, so what they run must write here.
unexport DWA_ROOT

# One word per settings file, in one pass over all: demo/digits-dwa-ipc10|0,1,2|once|table-1,figure-gain from its lines
# `seeds: [0, 1, 2]` and `shown_in: [table-1, figure-gain]`. What stands there without these lines is as in
# dwa_core/settings.py. Instead of `once`, `always` where it names files of the user's own, such as `distilled: folder`:
# whether they have changed since the record was made is the runner's to say.
SETTINGS := $(wildcard settings/*/*.yaml)
ifneq ($(filter-out settings/%.yaml,$(SETTINGS)),)
$(error settings: the name of a file may not hold a space: $(SETTINGS))
endif
define AWK
function setting() { if (name) print name "|" seeds "|" run "|" shown_in }
function values(line) { gsub(/^[^[]*\[|\].*$$| /, "", line); return line }
FNR == 1 { setting(); seeds = 0; run = "once"; shown_in = "table-1,figure-accuracy,figure-losses,figure-gallery"
           name = FILENAME; sub(/^settings\//, "", name); sub(/\.yaml$$/, "", name) }
/^seeds: *\[/ { seeds = values($$0) }
/^shown_in: *\[/ { shown_in = values($$0) }
/^distilled:|^[^#]*\.safetensors/ { run = "always" }
END { setting() }
endef
RUNS := $(if $(SETTINGS),$(shell awk '$(AWK)' $(SETTINGS)))
field = $(word $(1),$(subst |, ,$(2)))
values = $(subst $(comma), ,$(call field,$(1),$(2)))
records_of = $(foreach seed,$(call values,2,$(1)),results/$(call field,1,$(1))-seed$(seed).json)

RUNS_OF_PROFILE := $(filter $(PROFILE)/%,$(RUNS))
RECORDS := $(foreach run,$(RUNS_OF_PROFILE),$(call records_of,$(run)))

# notebooks/table_01.ipynb makes table-1, notebooks/figure_steps_rho.ipynb makes figure-steps-rho, and
# notebooks/what_moves_the_number.ipynb makes the table what-moves-the-number.
product_of = $(patsubst table-0%,table-%,$(subst _,-,$(basename $(notdir $(1)))))
NOTEBOOKS := $(wildcard notebooks/table_*.ipynb notebooks/what_*.ipynb notebooks/figure_*.ipynb)
shown = $(sort $(foreach run,$(1),$(call values,4,$(run))))
# Those that a setting of the profile is shown in, and those whose notebook reads no records, such as hyper-parameters.
OF_NO_RECORDS := $(if $(NOTEBOOKS),$(shell grep -L runs_for_notebook $(NOTEBOOKS)))
WANTED := $(call shown,$(RUNS_OF_PROFILE)) $(foreach n,$(OF_NO_RECORDS),$(call product_of,$n))
CHOSEN := $(foreach n,$(NOTEBOOKS),$(if $(filter $(call product_of,$n),$(WANTED)),$n))
TABLES := $(patsubst notebooks/%.ipynb,results/$(PROFILE)/%.md,$(filter-out notebooks/figure_%,$(CHOSEN)))
FIGURES := $(patsubst notebooks/figure_%.ipynb,figures/$(PROFILE)/%.svg,$(filter notebooks/figure_%,$(CHOSEN)))

.DEFAULT_GOAL := help
.PHONY: help reproduce report plan settings status test test-faults verify bench bench-growth lab environment publish distill share clean distclean
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make results/PROFILE/SETTING.json   run one setting, all its seeds"
	@echo "  make TABLE or FIGURE, with all it needs: $(foreach n,$(NOTEBOOKS),$(call product_of,$n))"
	@echo "PROFILE=demo (digits, minutes), lite (CIFAR on a CPU, hours), paper (GPU) or search (of best); now $(PROFILE)"

ifneq ($(filter-out ray,$(ENGINE)),)
$(error ENGINE: $(ENGINE) is not known; allowed: ray, or nothing)
endif
# With ENGINE=ray the records are made by Ray first, and what follows finds them there.
ifeq ($(ENGINE),ray)
reproduce: $(ENVIRONMENT)
	$(VENV)/bin/python notebooks/fleet.py settings/$(PROFILE) $(FLEET)
	@$(MAKE) --no-print-directory reproduce ENGINE=
else
reproduce: $(TABLES) $(TABLES:.md=.csv) $(FIGURES) $(FIGURES:.svg=.png) ## every record, table and figure of PROFILE, as far as it is not there yet
	@cat $(firstword $(TABLES)) < /dev/null
	@echo
	@echo "Tables:  $(TABLES) and .csv"
	@echo "Figures: $(FIGURES) and .png"
endif

report: $(ENVIRONMENT) ## one page of the tables and figures of PROFILE that are there: results/PROFILE/report.html
	@$(RUN) notebooks/report.ipynb --profile $(PROFILE)
	@$(VENV)/bin/jupyter nbconvert --log-level WARN --to html --template report_page --TemplateExporter.extra_template_basedirs=notebooks \
	    --output-dir results/$(PROFILE) --output report results/$(PROFILE)/executed/report.ipynb
	@echo "results/$(PROFILE)/report.html"

plan: $(ENVIRONMENT) ## what of PROFILE is done and what is missing, with the hours it takes where they were measured
	@$(VENV)/bin/python -m dwa_core.plan $(PROFILE)

settings: $(ENVIRONMENT) ## write the settings files of demo, paper and search anew from settings/grid.yaml
	@$(VENV)/bin/python -m dwa_core.grid

# Two test files at a time, with one thread each: networks as small as these gain nothing from a second.
test: $(ENVIRONMENT) ## the tests, and ruff's checks of code and notebooks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-faults: $(ENVIRONMENT) ## the fault tests whole: kills, full disks, damaged files, runs side by side
	$(VENV)/bin/python -m pytest tests/faults -m "whole or not whole"

verify: $(ENVIRONMENT) ## recompute the checksums of PROFILE's artifacts, and its tables from its records
	@$(VENV)/bin/python notebooks/verify.py $(PROFILE)

bench: $(ENVIRONMENT) ## time per step of ours beside a plain loop, at most 5 minutes on a quiet machine
	$(VENV)/bin/python benchmarks/bench.py

bench-growth: $(ENVIRONMENT) ## how time and memory of synthesis grow with ipc, classes and side
	$(VENV)/bin/python benchmarks/growth.py

lab: $(ENVIRONMENT) ## open JupyterLab on notebooks/
	$(VENV)/bin/jupyter lab --notebook-dir notebooks

environment: $(ENVIRONMENT) ## install what the others need into .venv

publish: $(ENVIRONMENT) ## copy the artifacts that PROFILE's records stand on to results/artifacts/, to be committed
	$(VENV)/bin/python -m dwa_core.publish $(PROFILE)

status: $(ENVIRONMENT) ## which settings of PROFILE are done, running, failed or waiting, with their last lines
	@$(VENV)/bin/python -m dwa_core.status $(PROFILE)

# DATA: a folder of images; NETWORK, IPC; WITH="teacher.epochs=30 seed=1": what differs from the recipe.
distill: $(ENVIRONMENT) ## teacher, distilled set and student for your own images: DATA=folder NETWORK=resnet18 IPC=10
	@$(VENV)/bin/python notebooks/distill.py $(if $(DATA),"$(DATA)") $(if $(NETWORK),--network $(NETWORK)) \
		$(if $(IPC),--ipc $(IPC)) $(WITH)

# A set of the name SET (under artifacts/distilled/) in the format of other tools.
share: $(ENVIRONMENT) ## write the distilled set SET for other tools; FORMAT=imagefolder, parquet or tensors; SOFT_LABELS=one or epochs
	@$(VENV)/bin/python -m dwa_core.export $(SET) $(if $(FORMAT),--format $(FORMAT)) \
		$(if $(SOFT_LABELS),--soft-labels $(SOFT_LABELS)) $(if $(TOP_K),--top-k $(TOP_K))

clean: ## delete executed notebooks and caches; artifacts, records, tables and figures stay
	rm -rf results/*/executed .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: ## delete also .venv, artifacts/, exports/ and what demo, walkthrough and your_own_data made, without asking
	@echo "deleting .venv, artifacts/, *.egg-info, exports/, results/demo, results/walkthrough, results/your-own-data, figures/demo, caches"
	@$(MAKE) --no-print-directory clean
	rm -rf .venv artifacts exports results/demo results/walkthrough results/your-own-data figures/demo *.egg-info

$(ENVIRONMENT): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -e .
	touch $@

.PHONY: always
# One record per seed of each settings file, and all of a file's records. $(1): a word of RUNS.
define setting_rules
.PHONY: results/$(call field,1,$(1)).json
results/$(call field,1,$(1)).json: $(call records_of,$(1))
$(call records_of,$(1)): results/$(call field,1,$(1))-seed%.json: settings/$(call field,1,$(1)).yaml $(filter always,$(call field,3,$(1))) | $(ENVIRONMENT)
	@$$(RUN) $$< --seed $$* $$(BUDGET) || { \
	    code=$$$$?; test $$$$code -ne 75 || echo "call me again: make $$(or $$(MAKECMDGOALS),reproduce) $$(MAKEOVERRIDES)"; \
	    exit $$$$code; }
endef
$(foreach run,$(RUNS),$(eval $(call setting_rules,$(run))))

# What tables and figures are drawn with, and what they say beside the records: print, and the hyper-parameters.
REPORTING := $(wildcard $(patsubst %,dwa_core/%.py,report tables figures records guard presets settings settings_files) dwa_core/published/*.csv)
# A table or figure from the records of the settings that are shown in it. $(1): its notebook; $(2): its file, less
# the ending; $(3), $(4): its endings. One run makes both: a pattern, for make then knows that.
shown_in = $(foreach run,$(RUNS_OF_PROFILE),$(if $(filter $(1),$(call values,4,$(run))),$(call records_of,$(run))))
define product_rules
.PHONY: $(call product_of,$(1))
$(call product_of,$(1)): $(2).$(3) $(2).$(4)
$(2)%$(3) $(2)%$(4): $(1) $(REPORTING) $(call shown_in,$(call product_of,$(1))) | $(ENVIRONMENT)
	@$$(RUN) $$< --profile $$(PROFILE)
endef
$(foreach n,$(filter-out notebooks/figure_%,$(NOTEBOOKS)),$(eval $(call product_rules,$n,$(n:notebooks/%.ipynb=results/$(PROFILE)/%),md,csv)))
$(foreach n,$(filter notebooks/figure_%,$(NOTEBOOKS)),$(eval $(call product_rules,$n,$(n:notebooks/figure_%.ipynb=figures/$(PROFILE)/%),svg,png)))
