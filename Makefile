# make demo    sets up, and finds what fine-tuning made a real 135M model forget
#              (BACKEND=nnsight or remote: the same, run by another backend)
# make test    sets up, and runs lint, types and all tests
# make setup   .venv, with the `mechforget` command in it; the others call it
# make lint    ruff and pyright only
# make web     rebuilds the report's front end (needs node) after a change in mechforget/views/web
# make remote-setup   .venv-remote and redis, for a server of your own: see remote/README.md
# make clean   removes what these made, .venv too; the caches of models in ~/.cache stay

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint web chromium remote-setup redis clean

BIN := .venv/bin
# Without it the tokenizers library warns at every fork.
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call debian,COMMANDS,PACKAGE,WITHOUT IT): Debian's PACKAGE, if none of the commands is there and
# root may install it. RUNLEVEL=1: Debian would start a redis of its own on the usual port.
define debian
if command -v $(1) >/dev/null; then exit 0; fi; \
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	echo "make: installing Debian's $(2)"; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	apt="apt-get -qq -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Dpkg::Use-Pty=0"; \
	if $$apt update && $$apt install -y --no-install-recommends $(2) >/dev/null; then exit 0; fi; \
fi; \
echo "$(3)"
endef

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: .venv/.installed

# A half-written .venv may look whole to pip, so one whose install was cut off is made anew.
# The stamp carries the time of the start: an edit during the install is seen. Without --no-compile
# pip spends more than a minute on bytecode that is mostly never imported; what a command imports is
# compiled by importing it here, or else the first one (or, where PYTHONDONTWRITEBYTECODE is set, each)
# would take ten seconds more.
.venv/.installed: pyproject.toml constraints.txt
	@if [ -e .venv/.installing ]; then rm -rf .venv; fi
	@python=$${PYTHON:-}; \
	for candidate in $$python python3.11 python3.12 python3.13 python3 python; do \
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "make setup: no Python >= 3.11 with venv and ensurepip found; install one, or name it:" \
			"make setup PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	mkdir -p .venv && touch .venv/.installing; \
	if ! [ -x $(BIN)/python ]; then "$$found" -m venv .venv; fi
	@echo "make setup: installing into .venv (about 2 GB; a few minutes the first time)"
	@$(BIN)/python -m pip install $$([ -t 1 ] || echo --quiet --quiet) --no-compile \
		--constraint constraints.txt --editable '.[test,notebook]'
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import nnsight, peft, rich.progress, scipy.stats, \
		transformer_lens.model_bridge, xarray, zarr, mechforget.cli, mechforget.planning.forecast, \
		mechforget.runs, mechforget.views.bundle, mechforget.views.plan; \
		from transformers import LlamaForCausalLM, Trainer'
	@rm -f $@ && mv .venv/.installing $@

BACKEND := transformer_lens
demo: setup $(if $(filter remote,$(BACKEND)),remote-setup)
	$(BIN)/python analyses/demo.py $(BACKEND)

test: setup chromium lint
	@$(MAKE) --no-print-directory remote-setup || \
		echo "make test: no server of its own can be set up; the tests that need it will be skipped"
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup -rs --no-fold-skipped

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# The report is tested in Debian's Chromium. Where it can't be had, those tests are skipped, and the
# last lines of `make test` name and count them.
chromium:
	@$(call debian,chromium chromium-browser google-chrome,chromium,make test: no chromium; the tests \
		that need it will be skipped)

remote-setup: .venv-remote/.installed redis

# The server's pins aren't the client's. ndif asks for a Python of 3.12 or newer and runs on 3.11.
.venv-remote/.installed: remote/requirements.txt remote/constraints.txt
	@if [ -e .venv-remote/.installing ]; then rm -rf .venv-remote; fi
	@python=$${PYTHON:-}; \
	for candidate in $$python python3.12 python3.13 python3.11 python3 python; do \
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
			2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "make remote-setup: no Python 3.11, 3.12 or 3.13 with venv and ensurepip found; install one," \
			"or name it: make remote-setup PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	mkdir -p .venv-remote && touch .venv-remote/.installing; \
	if ! [ -x .venv-remote/bin/python ]; then "$$found" -m venv .venv-remote; fi
	@echo "make remote-setup: installing into .venv-remote (about 2 GB; a few minutes the first time)"
	@pip=".venv-remote/bin/python -m pip"; quiet=$$([ -t 1 ] || echo --quiet --quiet); \
	$$pip install $$quiet --no-compile --constraint remote/constraints.txt \
		--requirement remote/requirements.txt; \
	$$pip download $$quiet --no-deps --python-version 3.12 --only-binary=:all: \
		--dest .venv-remote/ndif ndif==0.1.2; \
	$$pip install $$quiet --no-compile --no-deps --ignore-requires-python .venv-remote/ndif/*.whl
	@rm -f $@ && mv .venv-remote/.installing $@

redis:
	@$(call debian,redis-server,redis-server,make remote-setup: no redis-server; without it no server \
		starts and its tests are skipped)

web:
	cd mechforget/views/web && npm ci && npm run build

clean:
	rm -rf .venv .venv-remote .pytest_cache .ruff_cache .hypothesis mechforget/views/web/node_modules
	find mechforget tests analyses -name __pycache__ -type d -prune -exec rm -rf {} +
