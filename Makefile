# make eval: from a fresh machine to a robustness number. make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: eval test test-fast lint zoo-digits zoo-cifar10 benchmarks clean

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
	$(BIN)/lint-imports

# Train every network of the zoo anew from the recipe in its card; about 20 minutes on two cores.
zoo-digits: $(READY)
	for card in $$(grep -l '^\[datasets.digits.recipe\]' models/*.toml); do \
	  $(BIN)/biorobust train --model $$(basename $$card .toml) --dataset digits --to-zoo || exit 1; \
	done

# Train the zoo's networks for CIFAR-10 on a GPU, all at once, from the recipes in their cards; after MINUTES they stop,
# and the same call continues. On an H200 that all 13 shared, a step took 0.1 s (ResNet-20) or 0.25 s (cells).
MINUTES ?= 30
zoo-cifar10: $(READY)
	for card in $$(grep -l '^\[datasets.cifar10.recipe\]' models/*.toml); do \
	  OMP_NUM_THREADS=1 $(BIN)/biorobust train --model $$(basename $$card .toml) --dataset cifar10 --device cuda \
	    --max-minutes $(MINUTES) --to-zoo & \
	done; wait

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
