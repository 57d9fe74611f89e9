# Everything runs in .venv, which the first command makes (deploy/install.sh).
SHELL := /bin/bash
python := .venv/bin/python
installed := .venv/.installed
# Which interpreter .venv is made from; empty: the newest of Python 3.11 to 3.13 that is found.
PYTHON ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: study test lint lock clean help

study: $(installed)  ## the AGC sweep: a table, a plot, a best setting; make study ARGS="--plan"
	@$(python) studies/agc_sweep.py $(ARGS)

test: lint  ## lint, then all tests; make test ARGS="tests/unit -k agc"
	@$(python) -m pytest $(ARGS)

lint: $(installed)  ## ruff and mypy
	@$(python) -m ruff check .
	@$(python) -m mypy

lock:  ## requirements.txt anew from pyproject.toml; make lock ARGS=--upgrade
	@deploy/install.sh uv
	@.venv-uv/bin/uv pip compile --quiet pyproject.toml --group dev --group server --universal --python-version 3.11 \
		--generate-hashes --no-header --output-file requirements.txt $(ARGS)

clean:  ## remove .venv and the tools' caches; results and data stay
	rm -rf .venv .venv-uv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(installed): requirements.txt pyproject.toml deploy/install.sh deploy/uv.txt setup.py nfnet_ray/data/jpeg_box.c
	@deploy/install.sh
