# make env   build .venv with everything pinned       make demo   simulated scans, both levels
# make test  lint, types, all tests, coverage          make clean  remove what make made
# make image  the container image, by ENGINE           make test-container, test-slurm, test-browser

PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.built
DEMO := demo/bids/dataset_description.json
ENGINE ?= $(firstword $(foreach name,docker podman buildah,$(if $(shell $(name) info > /dev/null 2>&1 && echo yes),$(name))))
IMAGE ?= bids/brainage
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' bidsapp/__init__.py)

.PHONY: env demo test test-unit test-browser test-container test-slurm lint format image clean
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

# These are not among the tests of `make test`: they take a browser, an engine, or SLURM and root,
# and skip with the reason where there is none.
test-container: $(ENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[container]"
	$(BIN)/python -m pytest tests/container

test-browser: $(ENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[browser]"
	$(BIN)/python -m pytest tests/browser

test-slurm: $(ENV)
	$(BIN)/python -m pytest tests/cluster

format: $(ENV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# TORCH, OFFLINE, BASE and PIP_EXTRA_INDEX_URL as in the Dockerfile; BUILD_FLAGS for the engine.
image:
	$(if $(ENGINE),,$(error no container engine: install docker, podman or buildah, or name one in ENGINE))
	$(ENGINE) build $(BUILD_FLAGS) --tag $(IMAGE):$(VERSION) \
		$(foreach name,TORCH OFFLINE BASE PIP_EXTRA_INDEX_URL,$(if $($(name)),--build-arg $(name)="$($(name))")) \
		--build-arg VERSION=$(VERSION) \
		--build-arg VCS_REF=$(or $(shell git rev-parse --short HEAD 2> /dev/null),unknown) \
		--build-arg BUILD_DATE=$(shell date -u +%Y-%m-%dT%H:%M:%SZ) .

clean:
	rm -rf .venv build demo dist htmlcov .coverage .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache brainage.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
