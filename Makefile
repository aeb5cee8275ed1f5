# `make demo` sets up and serves the page on the bundled model, `make test` sets up and runs every test, `make bench` times,
# `make soak` loads.
PYTHON ?= python3
BIN := .venv/bin
BROWSERS := chromium chromium-browser google-chrome

.PHONY: demo test test-matrix soak lint bench browser clean

demo: .venv/app
	$(BIN)/python app.py $(FLAGS)

test: .venv/test browser lint
	$(BIN)/python -m pytest -m "not browser" -n 2 --dist loadfile $(PYTEST)
	$(BIN)/python -m pytest -m browser $(PYTEST)

# The core tests under other versions: make test-matrix VERSIONS="5.17.0 5.23.0" TORCH=2.11.0 MATRIX_PYTHON=python3.12
test-matrix: .venv/test
	$(BIN)/python tests/matrix.py $(if $(VERSIONS),--versions "$(VERSIONS)") $(if $(TORCH),--torch $(TORCH)) $(if $(MATRIX_PYTHON),--python $(MATRIX_PYTHON)) $(if $(KEEP),--keep)

# What is too long for the tests: crowds, stops, closed tabs, no memory left. make soak SOAK="stop memory" is a part of it.
soak: .venv/test browser
	$(BIN)/python tests/soak.py $(SOAK)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# All benchmarks that this machine can run, one after another, on two idle cores about thirteen minutes; then the goals.
# One that fails does not stop the others, and make fails in the end. Without a GPU bench gpu says so, and that is fine.
LONGTAIL = $(BIN)/python -m longtail bench
bench: .venv/app
	@failed=; \
	$(LONGTAIL) prefill --device cpu --repeat 5 --out || failed=yes; \
	$(LONGTAIL) decode --device cpu --repeat 1 --out || failed=yes; \
	$(LONGTAIL) selectors --device cpu --out || failed=yes; \
	$(LONGTAIL) compare --device cpu --budgets 32,128,576 --repeat 3 --out || failed=yes; \
	$(LONGTAIL) preprocess --device cpu --repeat 10 --out || failed=yes; \
	$(LONGTAIL) preview --device cpu --out || failed=yes; \
	$(BIN)/python -m demo.latency --turns 12 --out || failed=yes; \
	$(LONGTAIL) model --random medium --dtype float32 --device cpu --methods LongTail,FastV --new 8 --repeat 2 --out || failed=yes; \
	$(LONGTAIL) gpu --out || test $$? = 2 || failed=yes; \
	$(LONGTAIL) goals; test -z "$$failed"

.venv/app: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else "LongTail runs on Python 3.10 to 3.12, %s is %d.%d: make PYTHON=python3.12 ..." % (sys.executable, *v))'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/test: .venv/app tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation; \
	else \
		echo "The page's tests drive a real browser: install chromium (Debian: sudo apt-get install chromium fonts-liberation; macOS: brew install chromium) and run make test again." >&2; exit 1; \
	fi

clean:
	rm -rf .venv .venv-matrix
