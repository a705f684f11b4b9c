# make eval: from a fresh machine to a robustness number. make test: what every change must pass, in minutes.
# make test-all: the slow tests that it leaves out. .ci/run: both, and the site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

FAST := not slow and not gpu

.PHONY: eval test test-fast test-all lint zoo-digits zoo-cifar10 benchmarks clean

eval: $(READY)
	$(BIN)/biorobust eval --model bionas-darts --attack pgd

# mypy uses one core while the fast tests run; what it says is shown when they are through.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@$(BIN)/mypy > $(VENV)/mypy.txt 2>&1 & mypy=$$!; trap "kill $$mypy 2> /dev/null" INT TERM; \
	echo '$(BIN)/pytest -q -n 2 -m "$(FAST)"'; $(BIN)/pytest -q -n 2 -m "$(FAST)"; tests=$$?; \
	wait $$mypy; types=$$?; echo "$(BIN)/mypy"; cat $(VENV)/mypy.txt; [ $$tests = 0 ] && [ $$types = 0 ]
	@echo "make test-all runs the slow tests, which these leave out"

test-fast: $(READY)
	$(BIN)/pytest -q -n 2 -m "$(FAST)"

test-all: $(READY)
	$(BIN)/pytest -q -n 2 -m "not ($(FAST))"

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

# PEERS="--cifar10 FILE.npz --reference FILE.safetensors" measures on CIFAR-10, which the repository does not hold.
benchmarks: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/peers.py $(PEERS)
	$(BIN)/python benchmarks/supernet.py
	$(BIN)/python benchmarks/spiking.py
	$(BIN)/python benchmarks/thresholds.py

# torchattacks names an old requests that it does not need for its attacks: the peers come without what they pin.
$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ray,snn]"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[backends]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
