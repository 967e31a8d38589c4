# make env   build .venv with everything pinned       make demo   simulated scans, both levels
# make test  lint, types, all tests, coverage          make clean  remove what make made

PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.built
DEMO := demo/bids/dataset_description.json

.PHONY: env demo test test-unit lint format clean
.DELETE_ON_ERROR:

env: $(ENV)

$(ENV): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# The description is the last file that the simulation writes: with it, the data set is whole.
$(DEMO): $(ENV) $(wildcard models/simulation/*.py)
	rm -rf demo/bids
	$(BIN)/python -m models.simulation demo/bids

demo: $(DEMO)
	$(BIN)/python run.py demo/bids demo/brainage participant group
	@echo "Reports, to open in a browser:"
	@ls -1 $(CURDIR)/demo/brainage/*.html

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest --cov --cov-report=term

test-unit: $(ENV)
	$(BIN)/python -m pytest -m "not integration"

format: $(ENV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build demo dist htmlcov .coverage .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache brainage.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
