"""One file per paper; importing this package registers them all: controls and ours first, then by the papers' dates."""

import importlib
import pkgutil

from ..reducer import REDUCERS

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")

FIRST = ("Full", "LongTail", "TopK", "Random", "Sequential", "Uniform", "Manual")
dated = sorted(REDUCERS.keys() - set(FIRST), key=lambda name: (REDUCERS[name].paper, name))  # arXiv: dates
for name in (*FIRST, *dated):
    REDUCERS[name] = REDUCERS.pop(name)
