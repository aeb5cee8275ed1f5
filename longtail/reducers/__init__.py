"""One file per paper; importing this package registers them all, the controls first, ours second."""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
