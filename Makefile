# make run, make test: see README.md. Another Python: make test PYTHON=python3.13

PYTHON ?= python3
PORT ?= 8080
PYTEST_ARGS ?=
# Processes that share the tests. Most tests wait for other processes, so there are more processes than cores. With
# PYTEST_ARGS the tests run in one process.
WORKERS ?= $(if $(PYTEST_ARGS),0,3)
# A test that fails in a whole run is run once more, and both results are printed. tests/conftest.py has the limit.
RERUNS ?= $(if $(PYTEST_ARGS),0,1)

# The default Python's environment is .venv, that of another one .venv-3.13 and so on.
ifeq ($(PYTHON),python3)
VENV := .venv
else
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif

# constraints.txt has every version, also that of setuptools. A plain editable install would hide the plugin from
# twistd.
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALL = $(PIP_INSTALL) setuptools && $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=compat

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-bare check test-deps update bench bench-cluster conformance soak clean

help:
	@echo 'make run        the demo on http://localhost:8080/ (PORT=8080)'
	@echo 'make test       the suite (PYTHON=python3.13, PYTEST_ARGS="-k push", WORKERS=2)'
	@echo 'make test-long  its long runs: fuzz, faults, load'
	@echo 'make test-deps  install what the tests need of Debian (as root)'
	@echo 'make test-bare  both as on a machine without those packages (on Debian)'
	@echo 'make check      ruff, mypy --strict, import rules, prose: a part of make test'
	@echo 'make update     raise constraints.txt to the newest versions, and run the suite'
	@echo 'make bench      the benchmarks: half an hour (BENCH_ARGS=--quick), writes docs/performance.md'
	@echo 'make bench-cluster  several nodes on each engine, beside Socket.IO: twelve minutes, writes docs/scaling.md'
	@echo 'make soak       an hour of churn, faults and load: asserts flat memory (SOAK_SECONDS=3600)'
	@echo 'make conformance  the Autobahn test suite, with a Python 2.7 (PYTHON27=python2.7)'
	@echo 'make clean      remove everything that was made, environments included'

$(VENV)/bin/python:
	@$(PYTHON) -c '' 2>/dev/null || { echo '$(PYTHON) does not run: name another Python, such as PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo '$(PYTHON) is older than 3.11: name a newer Python, such as PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo '$(PYTHON) cannot make environments: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[mysql]'
	@touch $@

$(VENV)/.installed-for-tests: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[test,check]'
	@touch $@ $(VENV)/.installed

run: $(VENV)/.installed
	@echo 'Open http://localhost:$(PORT)/ in two windows, and log in as two agents. Ctrl-C ends it.'
	@exec $(VENV)/bin/twistd -n --pidfile= chatws --demo --port $(PORT)

test: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal --reruns $(RERUNS) $(if $(PYTEST_ARGS),$(PYTEST_ARGS),-m 'not long')

test-long: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal --reruns $(RERUNS) -m long $(PYTEST_ARGS)

check: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy --strict
	$(VENV)/bin/python -m pytest tests/test_imports.py tests/test_architecture_doc.py tests/test_prose.py

test-bare:
	@PYTHON='$(PYTHON)' .ci/bare $(MAKE) test test-long

# uv writes versions and markers for every Python and system that setup.cfg allows. It cannot read .tar.bz2, the format
# of txpostgres, so pip makes a wheel first.
update: $(VENV)/.installed-for-tests
	$(INSTALL) -e '.[update]'
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheels txpostgres
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate \
		--find-links build/wheels --custom-compile-command 'make update' --output-file constraints.txt setup.cfg
	$(MAKE) test test-long

test-deps:
	@PYTHON='$(PYTHON)' .ci/test-deps

# BENCH_ARGS=--quick for a first impression, RATCHET_VENDOR=path/to/vendor to include Ratchet.
BENCH_ARGS ?=

bench: $(VENV)/.installed-for-tests
	$(VENV)/bin/python benchmarks/run.py $(BENCH_ARGS)
	$(VENV)/bin/python benchmarks/storms.py
	$(VENV)/bin/python benchmarks/longest_turns.py
	$(VENV)/bin/python benchmarks/hostile.py
	$(VENV)/bin/python benchmarks/outbox.py
	$(VENV)/bin/python benchmarks/report.py
	$(VENV)/bin/python benchmarks/readme.py
	$(VENV)/bin/python benchmarks/cluster/scaling.py

# Needs redis-server, ss and Node. PostgreSQL comes with the tests.
bench-cluster: $(VENV)/.installed-for-tests
	$(VENV)/bin/python benchmarks/cluster/measure.py $(BENCH_ARGS)
	$(VENV)/bin/python benchmarks/cluster/scaling.py

SOAK_SECONDS ?= 3600

soak: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m tests.e2e.soak --seconds $(SOAK_SECONDS)

conformance: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m tests.e2e.conformance --write

clean:
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis test-artifacts _trial_temp
	rm -f twistd.log* twistd.pid twisted/plugins/dropin.cache
	find chatws tests twisted -name __pycache__ -type d -prune -exec rm -rf {} +
