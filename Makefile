# make eval: from a fresh machine to a robustness number. make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: eval test test-fast lint zoo-digits benchmarks clean

eval: $(READY)
	$(BIN)/biorobust eval --model bionas-darts --attack pgd

test: lint
	$(BIN)/pytest -q -n 2

test-fast: $(READY)
	$(BIN)/pytest -q -n 2 -m "not slow and not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Train every network of the zoo anew from the recipe in its card; about 20 minutes on two cores.
zoo-digits: $(READY)
	for card in models/*.toml; do \
	  $(BIN)/biorobust train --model $$(basename $$card .toml) --dataset digits --to-zoo || exit 1; \
	done

benchmarks: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/supernet.py
	$(BIN)/python benchmarks/spiking.py

# torchattacks names an old requests that it does not need for its attacks: the peers come without what they pin.
$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ray,snn]"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[backends]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
