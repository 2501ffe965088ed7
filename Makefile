# The Python to create the virtual environments with (3.11 or newer).
PYTHON := $(or $(PYTHON),$(shell command -v python3.11 || command -v python3))
# Passed to pytest, as in: make test ARGS="-k servers"
ARGS :=
# Tests wait for servers and processes more than they compute. Each worker has a
# server of its own.
PYTEST := pytest --quiet --numprocesses 4 --dist worksteal

# One environment for each series of SQLAlchemy, so that switching costs nothing, one
# with the lowest versions that pyproject.toml allows, and one with libraries that are
# used together with this one, sqlglot's compiled build among them, in which nothing can
# be subclassed.
NEWEST := .venv
SA20 := .venv-sa20
LOWEST := .venv-lowest
CLIENTS := .venv-clients
GROUP := dev
$(NEWEST)/dependencies: SQLALCHEMY := sqlalchemy
$(SA20)/dependencies: SQLALCHEMY := sqlalchemy<2.1
$(LOWEST)/dependencies: SQLALCHEMY := sqlalchemy
$(LOWEST)/dependencies: CONSTRAINT := --constraint $(LOWEST)/lower-bounds
$(CLIENTS)/dependencies: SQLALCHEMY := sqlalchemy
$(CLIENTS)/dependencies: GROUP := clients

# Folders too: one is newer than its files when a file was deleted.
PACKAGE := pyproject.toml README.md LICENSE \
	$(shell find sqlalchemy_tenants alembic_ext -name __pycache__ -prune -o -print)

PIP := bin/python -m pip --quiet --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all test-lowest test-clients test-compiled
.PHONY: mutants lint format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(NEWEST)/package ## Run the main job in front of you, on an embedded PostgreSQL
	@$(NEWEST)/bin/python examples/quickstart/demo.py

test: $(NEWEST)/package ## Run the tests: PostgreSQL 18, newest SQLAlchemy
	@$(NEWEST)/bin/$(PYTEST) $(ARGS)

# What some tests are about is the server's doing, whatever SQLAlchemy's version; others
# ask no server, or the newest one in any case.
ignore = $(patsubst %,--ignore=tests/test_%.py,$(1))
SERVER_ONLY := $(call ignore,attacks expressions own_policies pgbouncer drift_names \
	moving mutants pgrls migration_faults benchmarks cluster reach repairs others \
	command_line setup hardening injected suspend rows_refused rows_page testing \
	testing_pages)
SERVER_APART := $(call ignore,declare package templates moving readme mutants benchmarks \
	others bound_to criteria fit logging rows_page testing_pages command_line \
	example_fastapi tenant_functions)

REST := test-pg16 test-pg15 test-pg18-sa20
.PHONY: $(REST)

test-all: test $(REST) ## Run the tests on PostgreSQL 15, 16, 18, SQLAlchemy 2.0, 2.1

# What 15 and 18 agree on needs no server in between.
test-pg16: BETWEEN := $(call ignore,model drift_names examples isolation)

test-pg16 test-pg15: test-pg%: $(NEWEST)/package
	@TENANTS_PG=$* $(NEWEST)/bin/$(PYTEST) $(SERVER_APART) $(BETWEEN) $(ARGS)

test-pg18-sa20: test-pg%-sa20: $(SA20)/package
	@TENANTS_PG=$* $(SA20)/bin/$(PYTEST) $(SERVER_ONLY) $(ARGS)

# Where the versions matter: what we use of SQLAlchemy, Alembic, sqlglot, the drivers.
LOWEST_TESTS := $(patsubst %,tests/test_%.py,session drivers declare operations \
	drift_models package fit)

test-lowest: $(LOWEST)/package ## Run some tests on the lowest versions allowed
	@$(LOWEST)/bin/$(PYTEST) $(LOWEST_TESTS) $(ARGS)

# Advanced Alchemy uses what SQLAlchemy 2.1 deprecates.
THEIR_WARNINGS := -W "ignore:The declarative_mixin:DeprecationWarning"

test-clients: $(CLIENTS)/package ## Run small programs that use other libraries, too
	@$(CLIENTS)/bin/$(PYTEST) $(THEIR_WARNINGS) tests/clients $(ARGS)

test-compiled: $(CLIENTS)/package ## Run the tests of conditions with sqlglot[c]
	@$(CLIENTS)/bin/$(PYTEST) tests/test_expressions.py tests/test_own_policies.py $(ARGS)

# Not from here: the packages of the checkout would come before the mutated copy.
mutants: $(NEWEST)/package ## Take out each guard, and see a test fail (an hour)
	@cd tests && ../$(NEWEST)/bin/python -m mutants $(ARGS)

lint: $(NEWEST)/dependencies ## Check style and types
	@$(NEWEST)/bin/ruff check --quiet
	@$(NEWEST)/bin/ruff format --quiet --check --diff
	@$(NEWEST)/bin/mypy

format: $(NEWEST)/dependencies ## Rewrite the code in the project's style
	@$(NEWEST)/bin/ruff check --quiet --fix
	@$(NEWEST)/bin/ruff format --quiet

# Not "python -m": that imports the package from the checkout.
bench: $(NEWEST)/package ## Measure, side by side with other ways to do it
	@$(NEWEST)/bin/python benchmarks $(ARGS)

clean: ## Remove everything that make created
	@rm -rf $(NEWEST) $(SA20) $(LOWEST) $(CLIENTS)
	@rm -rf benchmarks/.venvs build dist
	@rm -rf .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

%/dependencies: pyproject.toml
	@echo "Installing $(SQLALCHEMY) and the rest into $* (about a minute)"
	@$(PYTHON) -m venv --clear $*
	@$*/$(PIP) install --upgrade "pip>=25.1"
	@$*/bin/python tests/lower_bounds.py > $*/lower-bounds
	@$*/$(PIP) install --group $(GROUP) ".[cli,psycopg,asyncpg,embedded]" "$(SQLALCHEMY)" \
		$(CONSTRAINT)
	@touch $@

# The tests are about what users install, entry point included.
%/package: %/dependencies $(PACKAGE)
	@$*/$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@
