# `make demo` sets up and serves the page on the bundled model, `make test` sets up and runs every test, `make bench` times.
PYTHON ?= python3
BIN := .venv/bin
BROWSERS := chromium chromium-browser google-chrome

.PHONY: demo test test-matrix lint bench browser clean

demo: .venv/app
	$(BIN)/python app.py $(FLAGS)

test: .venv/test browser lint
	$(BIN)/python -m pytest -m "not browser" -n 2 --dist loadfile $(PYTEST)
	$(BIN)/python -m pytest -m browser $(PYTEST)

# The core tests under other versions: make test-matrix VERSIONS="5.17.0 5.23.0" TORCH=2.11.0 MATRIX_PYTHON=python3.12
test-matrix: .venv/test
	$(BIN)/python tests/matrix.py $(if $(VERSIONS),--versions "$(VERSIONS)") $(if $(TORCH),--torch $(TORCH)) $(if $(MATRIX_PYTHON),--python $(MATRIX_PYTHON)) $(if $(KEEP),--keep)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# All benchmarks that this machine can run, one after another, on an idle one about half an hour; what cannot says why.
# One that fails does not stop the others, and make fails in the end.
LONGTAIL = $(BIN)/python -m longtail bench
bench: .venv/app
	@failed=; for kind in prefill decode selectors compare; do $(LONGTAIL) $$kind --device cpu --out || failed=yes; done; \
	$(BIN)/python -m demo.latency --out || failed=yes; \
	$(LONGTAIL) model --random llava-1.5-7b --dtype bfloat16 --device cpu --methods LongTail,TopK,Random,FastV --new 8 --repeat 3 --out || test $$? = 2 || failed=yes; \
	$(LONGTAIL) gpu --out || test $$? = 2 || failed=yes; \
	test -z "$$failed"

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
