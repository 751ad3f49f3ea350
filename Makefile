# Stages and files only: what a run computes stands in settings/ and in dwa_core/presets.py.
PROFILE ?= demo
PYTHON ?= python3

VENV := .venv
ENVIRONMENT := $(VENV)/installed
# `make reproduce MAX_MINUTES=230`: a time budget for the whole call. What is stopped then goes on at the next one.
BUDGET := $(if $(MAX_MINUTES),--max-minutes $(MAX_MINUTES) --since $(shell date +%s))
RUN := $(VENV)/bin/python notebooks/run.py
comma := ,
# Targets lie in this folder, so what they run must write here.
unexport DWA_ROOT

# The student seeds of a settings file, from its line `seeds: [0, 1, 2]`; without one, seed 0.
seeds_of = $(or $(subst $(comma), ,$(shell sed -n 's/^seeds: *\[\(.*\)\].*/\1/p' $(1))),0)
records_of = $(foreach seed,$(call seeds_of,$(1)),$(patsubst settings/%.yaml,results/%,$(1))-seed$(seed).json)

SETTINGS := $(wildcard settings/*/*.yaml)
ifneq ($(filter-out settings/%.yaml,$(SETTINGS)),)
$(error settings: the name of a file may not hold a space: $(SETTINGS))
endif
RECORDS := $(foreach file,$(wildcard settings/$(PROFILE)/*.yaml),$(call records_of,$(file)))
TABLES := results/$(PROFILE)/table_01.md
FIGURES := $(addprefix figures/$(PROFILE)/,accuracy.svg losses.svg gallery.svg)

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-faults verify lab environment publish clean distclean
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make results/PROFILE/SETTING.json   run one setting, all its seeds"
	@echo "PROFILE=demo (digits, minutes), lite (CIFAR-10 on a CPU, hours) or paper (GPU); now $(PROFILE)"

reproduce: $(TABLES) $(TABLES:.md=.csv) $(FIGURES) $(FIGURES:.svg=.png) ## every record, table and figure of PROFILE, as far as it is not there yet
	@cat results/$(PROFILE)/table_01.md
	@echo
	@echo "Tables:  $(TABLES) and .csv"
	@echo "Figures: $(FIGURES) and .png"

test: $(ENVIRONMENT) ## the tests, and ruff's checks of code and notebooks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest

test-faults: $(ENVIRONMENT) ## the fault tests whole: kills, full disks, damaged files, runs side by side
	$(VENV)/bin/python -m pytest tests/faults -m "whole or not whole"

verify: $(ENVIRONMENT) ## recompute the checksums of PROFILE's artifacts, and its tables from its records
	@$(VENV)/bin/python notebooks/verify.py $(PROFILE)

lab: $(ENVIRONMENT) ## open JupyterLab on notebooks/
	$(VENV)/bin/jupyter lab --notebook-dir notebooks

environment: $(ENVIRONMENT) ## install what the others need into .venv

publish: $(ENVIRONMENT) ## copy the artifacts that PROFILE's records stand on to results/artifacts/, to be committed
	$(VENV)/bin/python -m dwa_core.store $(PROFILE)

clean: ## delete executed notebooks and caches; artifacts, records, tables and figures stay
	rm -rf results/*/executed .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: ## delete also .venv, artifacts/ and what demo and walkthrough made, without asking
	@echo "deleting .venv, artifacts/, *.egg-info, results/demo, results/walkthrough, figures/demo, caches"
	@$(MAKE) --no-print-directory clean
	rm -rf .venv artifacts results/demo results/walkthrough figures/demo *.egg-info

$(ENVIRONMENT): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -e .
	touch $@

# One record per seed of each settings file. $(1): the file; $(2): a seed.
define record_rule
$(patsubst settings/%.yaml,results/%,$(1))-seed$(2).json: $(1) | $(ENVIRONMENT)
	@$$(RUN) $(1) --seed $(2) $$(BUDGET) || { \
	    code=$$$$?; test $$$$code -ne 75 || echo "call me again: make $$(or $$(MAKECMDGOALS),reproduce) $$(MAKEOVERRIDES)"; \
	    exit $$$$code; }
endef
define setting_rule
.PHONY: $(patsubst settings/%.yaml,results/%,$(1)).json
$(patsubst settings/%.yaml,results/%,$(1)).json: $(call records_of,$(1))
endef
$(foreach file,$(SETTINGS),$(foreach seed,$(call seeds_of,$(file)),$(eval $(call record_rule,$(file),$(seed)))))
$(foreach file,$(SETTINGS),$(eval $(call setting_rule,$(file))))

# Two products of one run: patterns, because make then knows that.
results/$(PROFILE)/table_%.md results/$(PROFILE)/table_%.csv: notebooks/table_%.ipynb dwa_core/report.py $(RECORDS) | $(ENVIRONMENT)
	@$(RUN) $< --profile $(PROFILE)

figures/$(PROFILE)/%.svg figures/$(PROFILE)/%.png: notebooks/figure_%.ipynb dwa_core/report.py $(RECORDS) | $(ENVIRONMENT)
	@$(RUN) $< --profile $(PROFILE)
