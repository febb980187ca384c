PYTHON ?= python3
PORT ?= 8000
VENV := .venv
READY := $(VENV)/ready
BENCH_READY := $(VENV)/ready-bench
RESULT := .tox/result.json

.PHONY: help
help:  ## Show this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: $(READY)  ## Run ruff, mypy and all tests on this Python, as each commit must pass them
	@$(RUN) -e py,suite,mypy,lint; $(END)

.PHONY: test-all
test-all: $(READY)  ## The same on every Python and Django, as in CI
	@$(RUN); $(END)

# One environment per core at a time, the slowest first. At the end a list says what ran and what did not.
RUN = rm -f $(RESULT); $(VENV)/bin/tox run-parallel --result-json $(RESULT)
END = status=$$?; test ! -e $(RESULT) || $(VENV)/bin/python .ci/report.py $(RESULT); exit $$status

.PHONY: release-check
release-check: $(READY)  ## Build the release in dist/, check it, install it, and sign in on each engine
	$(VENV)/bin/tox run -e release

.PHONY: demo
demo: $(READY)  ## Serve the test site on http://127.0.0.1:8000/ (PORT=8000)
	$(VENV)/bin/python manage.py demo_setup
	$(VENV)/bin/python manage.py runserver 127.0.0.1:$(PORT) --noreload

.PHONY: docs
docs: $(READY)  ## Build the documentation site, build/docs/index.html
	$(VENV)/bin/tox run --quiet -e docs

.PHONY: bench
bench: $(BENCH_READY)  ## Measure our engines beside Django's
	$(VENV)/bin/python -m benchmarks

.PHONY: clean
clean:  ## Remove all files of the other commands
	rm -rf $(VENV) .tox .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info testproject/demo.*
	find . -name __pycache__ -prune -exec rm -rf {} +

# One environment for all commands. It is built again when one of these files has changed.
$(READY): setup.cfg pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'tox>=4.60' --editable .
	@touch $@

$(BENCH_READY): $(READY) benchmarks/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	@touch $@
