# Schedules only: `python -m dwa_paper` knows what is missing, and what it needs.
PROFILE ?= demo
# As it was given: nothing in it is expanded, here or by a shell, which reads it as $$PROFILE.
export override PROFILE := $(value PROFILE)
quote = '$(subst ','\'',$(1))'
PYTHON ?= python3
ENVIRONMENT := .venv/installed
DWA := .venv/bin/python -m dwa_paper
PRODUCTS := $(basename $(notdir $(wildcard notebooks/table-*.ipynb notebooks/figure-*.ipynb notebooks/what-*.ipynb)))
# The tables and figures asked for; none: all that PROFILE has, and all its records.
ASKED := $(if $(filter reproduce,$(MAKECMDGOALS)),,$(filter $(PRODUCTS),$(MAKECMDGOALS)))
SINCE := $(shell date +%s)
CALL = --since $(SINCE) $(STEPS:%=--steps %) # the whole call: so MAX_MINUTES=230 is a time budget for all of it
# Most of a run of the demo is the start of a kernel: two at a time, with one thread each.
ifeq ($(PROFILE)/$(MAKELEVEL)/$(filter-out reproduce $(PRODUCTS),$(or $(MAKECMDGOALS),none)),demo/0/)
MAKEFLAGS += --jobs=2
export OMP_NUM_THREADS ?= 1
endif
unexport DWA_ROOT # all is written in this folder
$(if $(filter-out ray,$(ENGINE)),$(error ENGINE: $(ENGINE) is not known; allowed: ray, or nothing))
$(if $(and $(ENGINE),$(MAX_MINUTES)),$(error MAX_MINUTES: not allowed with ENGINE=ray; end it when you like, and the same command continues from the last checkpoints))
.DEFAULT_GOAL := help
TARGETS := help reproduce report plan status verify publish docs settings distill share test test-faults test-cuda bench bench-growth lab site environment clean distclean
.PHONY: $(TARGETS) $(PRODUCTS) records FORCE
.PRECIOUS: results/%.json # a record is never deleted, whatever interrupts make
.SECONDEXPANSION:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '  %s\n' 'make results/PROFILE/SETTING.json   run one setting, all its seeds; SETTING-seedN.json runs one' 'make TABLE or FIGURE, with all it needs:' $(PRODUCTS:%='  %')
	@echo "PROFILE=demo (digits, minutes), lite, resnet18 and teachers (CIFAR on a CPU, hours), search (of best) or paper (GPU); now $$PROFILE"

reproduce: records ## all records, tables and figures of PROFILE that are missing; ENGINE=ray: the records by Ray, with options FLEET
	@cat results/"$$PROFILE"/table-1.md 2> /dev/null; echo; ls results/"$$PROFILE"/*.md figures/"$$PROFILE"/*.svg 2> /dev/null || true
$(PRODUCTS): records; @ls $(if $(filter figure-%,$@),figures,results)/"$$PROFILE"/$@.*
# Each record once, whichever tables and figures need it, in a make of its own.
records: $(ENVIRONMENT)
	$(if $(ENGINE),@targets=$$($(DWA) missing "$$PROFILE" $(ASKED)) || exit; targets=$$(printf '%s\n' "$$targets" | grep 'json$$'); test -z "$$targets" || $(DWA) fleet $$targets $(FLEET))
	@targets=$$($(DWA) missing "$$PROFILE" $(ASKED)) || exit; test -z "$$targets" || $(MAKE) --no-print-directory SINCE=$(SINCE) $$targets
results/%.json: FORCE | $(ENVIRONMENT) $$(call before,$$@,/table-1.md); @$(DWA) run $(call quote,$@) $(MAX_MINUTES:%=--max-minutes %) $(CALL)
# Goals named before $(1), a table's records or Table 1, which it waits for under -j; else the order is theirs, and -k goes on after one that fails.
before = $(if $(findstring jobserver,$(MAKEFLAGS)),$(filter %$(2),$(subst :, ,$(firstword $(subst $(1), ,:$(subst $() ,:,$(MAKECMDGOALS)))))))
draw = $(DWA) draw $(call quote,$(notdir $*)) --profile $(call quote,$(patsubst %/,%,$(dir $*))) $(CALL)
results/%.md: $$(call before,$$@,.json) FORCE | $(ENVIRONMENT); @$(draw)
figures/%.svg: $$(call before,$$@,.json) FORCE | $(ENVIRONMENT); @$(draw)
report: $(ENVIRONMENT) ## one page of the tables and figures of PROFILE that are there: results/PROFILE/report.html
	@$(DWA) draw report --profile "$$PROFILE"
	@.venv/bin/jupyter nbconvert --log-level WARN --to html --template report_page --TemplateExporter.extra_template_basedirs=notebooks \
	    --output-dir results/"$$PROFILE" --output report results/"$$PROFILE"/executed/report.ipynb && echo results/"$$PROFILE"/report.html
plan: $(ENVIRONMENT); @$(DWA) plan "$$PROFILE" $(DEVICE:%=--device %) ## what of PROFILE is missing, and its hours here or on DEVICE=h200, h100, a100 or rtx4090
status: $(ENVIRONMENT); @$(DWA) status "$$PROFILE" ## which runs of PROFILE are done, running, failed or waiting, with their last lines
verify: $(ENVIRONMENT); @$(DWA) verify "$$PROFILE" $(RERUN:%=--rerun %) ## check artifacts, and PROFILE's records, tables and figures; RERUN=n makes n records again
publish: $(ENVIRONMENT); @$(DWA) publish "$$PROFILE" ## copy the artifacts that PROFILE's records name to results/artifacts/, to be committed
docs: $(ENVIRONMENT); @$(DWA) docs ## write the numbers that README and docs/ quote from the records
settings: $(ENVIRONMENT); @$(DWA) settings ## write the settings of settings/grid.yaml as files, for bare papermill
distill: $(ENVIRONMENT) ## teacher, distilled set and student for your own images: DATA=folder NETWORK=resnet18 IPC=10 WITH="seed=1 teacher.epochs=30"
	@$(DWA) distill $(if $(DATA),$(call quote,$(DATA))) $(NETWORK:%=--network %) $(IPC:%=--ipc %) $(if $(WITH),--with $(foreach each,$(WITH),$(call quote,$(each))))
share: $(ENVIRONMENT); @$(DWA) share $(if $(SET),$(call quote,$(SET))) $(FORMAT:%=--format %) $(SOFT_LABELS:%=--soft-labels %) $(TOP_K:%=--top-k %) $(if $(TO),--to $(call quote,$(TO))) ## write the distilled set SET for other tools; FORMAT=imagefolder, parquet or tensors; SOFT_LABELS=one or epochs; TOP_K; TO=folder
test: $(ENVIRONMENT) ## the tests, two files at a time with one thread each, and ruff's checks of code and notebooks
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile
test-faults: $(ENVIRONMENT); .venv/bin/python -m pytest tests/faults -m "whole or not whole" ## kills, full disks, damaged files, runs side by side
test-cuda: $(ENVIRONMENT); .venv/bin/python -m pytest tests/test_cuda.py ## what needs a GPU: graphs, streams, memory that runs out
bench: $(ENVIRONMENT); .venv/bin/python benchmarks/bench.py ## time per step of ours beside a plain loop, at most 5 minutes on a quiet machine
bench-growth: $(ENVIRONMENT); .venv/bin/python benchmarks/growth.py ## how time and memory of synthesis grow with ipc, classes and side
lab: $(ENVIRONMENT); .venv/bin/jupyter lab --notebook-dir notebooks --ContentsManager.pre_save_hook=dwa_paper.runs.notebook.strip_outputs ## open JupyterLab on notebooks/
site: $(ENVIRONMENT) ## these pages, the walkthrough, tables, figures and the API as a site: _site/html/index.html
	@.venv/bin/python -m pip install --disable-pip-version-check -qc requirements.lock -e '.[docs]' && .venv/bin/python -m sphinx -M html . _site -c docs -E -q -W && echo _site/html/index.html
environment: $(ENVIRONMENT) ## install what the others need into .venv
$(ENVIRONMENT): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=")'
	@echo "installing $$(grep -c == requirements.lock) libraries into .venv, up to 6 GB; this takes some minutes" && $(PYTHON) -m venv .venv
	@{ .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock || echo failed; } | \
	    awk '/^(Collecting|Requirement)/ {printf "\rfound %d ", ++n} /^Installing/ {print "and downloaded; unpacking"} /^failed/ {exit 1}'
	@.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -e . && touch $@ && echo installed
.DEFAULT: ; @$(PYTHON) -c 'import difflib, sys; close = difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1); sys.exit(f"error: make {sys.argv[1]}: " + (f"did you mean make {close[0]}?" if close else "no such target; make help lists them"))' $(call quote,$@) $(TARGETS) $(PRODUCTS)
clean: ; rm -rf results/*/executed _site .pytest_cache .ruff_cache $$(find . -path ./.venv -prune -o -name __pycache__ -prune -print) ## delete executed notebooks, the site and caches
distclean: clean ; rm -rf .venv artifacts exports results/demo results/walkthrough results/your-own-data figures/demo *.egg-info ## delete also .venv, artifacts/, exports/ and what demo, walkthrough and your_own_data made, without asking
