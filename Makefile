.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
DOCS := .venv/docs
BENCH := .venv/bench
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO := runs/demo
DEMO_STEPS ?= 350

.PHONY: help demo test nightly test-portable notebooks-alone nbs bench gpu claim-gpu house sync export readme docs docs-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One environment for all targets, made anew when the requirements change.
$(INSTALLED): settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[dev,docs]'
	@touch $@

$(BENCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[dev,bench]'
	@touch $@

demo: $(INSTALLED) ## train VDM and MuLAN on the digits in runs/demo (DEMO_STEPS=350), one row each, samples, the schedule per pixel; again to resume
	for system in vdm mulan; do \
	  $(BIN)/mulan-vdm train --preset $$system-digits --steps $(DEMO_STEPS) --out $(DEMO)/$$system $$(test -e $(DEMO)/$$system && echo --resume) && \
	  $(BIN)/mulan-vdm evaluate $(DEMO)/$$system --draws 24 && $(BIN)/mulan-vdm sample $(DEMO)/$$system || exit 1; \
	done
	$(BIN)/mulan-vdm compare $(DEMO)/vdm $(DEMO)/mulan --picture $(DEMO)/compare.png
	@echo "the schedule per pixel: $(DEMO)/mulan/pixels.png"

test: $(INSTALLED) ## sync check, every notebook, then the tests; the last line says what passed
	$(BIN)/python .ci/test.py

test-portable: $(INSTALLED) ## notebooks and tests as on other machines: processors, threads, seeds, versions (an hour and more); ONLY=generic runs one setting
	$(BIN)/python .ci/portable.py $(if $(ONLY),--only $(ONLY))

nightly: $(INSTALLED) ## tests that try all where `make test` tries some: kills at every call, damaged files and words by the ten thousand (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m nightly tests

notebooks-alone: $(INSTALLED) ## every notebook by itself, from the wheel in an empty folder; NB="nbs/00_noise.ipynb ..." for some
	$(BIN)/python .ci/alone.py $(NB)

nbs: $(INSTALLED) ## run notebooks and store their outputs: all, or NB="nbs/00_noise.ipynb ..."; FLAGS=slow runs flagged cells too
	$(BIN)/python .ci/execute.py $(NB) --flags "$(FLAGS)"

bench: $(BENCH) ## measure speed and memory on one thread, print the tables and store them (nbs/reports/studies/speed.json)
	$(BIN)/python .ci/bench.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m bench tests

gpu: $(INSTALLED) ## measure on an accelerator: parity, speed, memory, a training (8 minutes, reports in nbs/reports/gpu); scaled down without one
	$(BIN)/python .ci/gpu.py

claim-gpu: $(INSTALLED) ## train one schedule and one per pixel, with even times and times that follow the loss, on Fashion-MNIST (IMAGES=its folder, SEEDS, BUDGET in seconds); scaled down without an accelerator
	$(BIN)/python .ci/gpu.py --parts claim --compile --graphs --images "$(IMAGES)" --seeds $(or $(SEEDS),4) --budget $(or $(BUDGET),14400)

house: $(INSTALLED) ## measure how modules and notebooks read, beside the goals
	$(BIN)/python .ci/house.py

sync: $(INSTALLED) ## check that notebooks, modules and README agree
	$(BIN)/python .ci/sync.py

export: $(INSTALLED) ## write modules and README from the notebooks
	$(BIN)/python .ci/sync.py --write

readme: $(INSTALLED) ## write README.md alone
	$(BIN)/python .ci/readme.py

docs: $(DOCS) ## render the site in _docs from the notebooks as they are stored; open _docs/index.html
	OMP_NUM_THREADS=1 $(BIN)/python docs/build.py

docs-test: docs ## render the site and check it in a browser: links, equations, requests, width, search (needs Chromium)
	$(BIN)/python -m pytest -q docs

clean: ## remove what builds leave behind (not .venv, not runs)
	rm -rf build dist *.egg-info _proc _docs nbs/nbdev.yml .pytest_cache .hypothesis
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
