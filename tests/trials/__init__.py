"""What the page endures, a trial a function. `tests/soak.py` runs them whole, `make test` their short forms."""
