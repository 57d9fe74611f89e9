# Everything runs in .venv, which the first command makes (deploy/install.sh). A study installs what it needs, the tests
# also install the development tools.
SHELL := /bin/bash
python := .venv/bin/python
installed := .venv/.installed
installed_tools := .venv/.installed-dev
compile := .venv-uv/bin/uv pip compile --quiet pyproject.toml --group server --universal --python-version 3.11 \
	--generate-hashes --no-header --output-file
# Where a shell forbids Python to keep compiled modules, each process would compile ours anew, which takes 0.7 s for a
# study's driver; the tests start some 700 processes.
unexport PYTHONDONTWRITEBYTECODE
# Which interpreter .venv is made from; empty: the newest of Python 3.11 to 3.13 that is found.
PYTHON ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: study test check test-image lint docs docs-serve lock clean help
# Two installations at once would write into the same .venv.
.NOTPARALLEL:

study: $(installed)  ## run the AGC sweep on handwritten digits: a table, a report, an answer; make study ARGS="--plan"
	@$(python) studies/agc_sweep.py $(ARGS)

# Two processes: three kept two cores busier (99 instead of 90%), but each test took longer (24:11 and 23:22 in all).
test: lint  ## run lint, then all tests; make test ARGS="tests/quick -k agc"
	@$(python) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint  ## run lint, then the quick tests, without Ray or training; make check ARGS="-k agc"
	@$(python) -m pytest --numprocesses 2 --dist loadfile -m "not slow and not image" tests/quick nfnet_ray $(ARGS)

test-image: $(installed_tools)  ## build the container image, then run a study from it; as root, on Debian or Ubuntu
	@deploy/build_here.sh
	@$(python) -m pytest -m image tests/deploy/test_image.py $(ARGS)

lint: $(installed_tools)  ## run ruff, Pyrefly, and Biome for the pages' style sheets and scripts
	@$(python) -m ruff check .
	@$(python) -m ruff format --check --quiet . || { echo "make lint: run .venv/bin/ruff format on these files"; exit 1; }
	@$(python) -m pyrefly check --summary=none --output-format min-text
# Biome is installed only on x86-64 Linux.
	@if [ -x .venv/bin/biome ]; then .venv/bin/biome check --error-on-warnings; fi

docs: $(installed_tools)  ## build the documentation as a site, in build/docs; a dead link is an error
	@$(python) -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . build/docs
	@echo "build/docs/index.html"

docs-serve: docs  ## build it and show it at http://localhost:8000
	@$(python) -m http.server --bind 127.0.0.1 --directory build/docs 8000

lock:  ## rewrite requirements.txt and requirements-dev.txt from pyproject.toml; make lock ARGS=--upgrade
	@deploy/install.sh uv
	@$(compile) requirements-dev.txt --group dev $(ARGS)
# A part of the same resolution: uv keeps the versions that it finds in the file that it writes.
	@cp requirements-dev.txt requirements.txt
	@$(compile) requirements.txt

clean:  ## remove .venv and the tools' caches; results and data stay
	rm -rf .venv .venv-uv .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

sources := requirements.txt requirements-dev.txt pyproject.toml deploy/install.sh deploy/uv.txt setup.py \
	nfnet_ray/data/decoding/jpeg_box.c

$(installed): $(sources)
	@deploy/install.sh

$(installed_tools): $(sources)
	@deploy/install.sh dev
