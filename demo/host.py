"""The model that answers, and the ones it may be changed for: one at a time in memory."""

import gc
from collections.abc import Callable

import torch

from . import space


class Host:
    """Holds the loaded model, or None on a page that only replays reports."""

    def __init__(self, llava, names: tuple[str, ...] = (), load: Callable | None = None):
        self.llava, self.names, self.load = llava, names, load
        self.name = names[0] if names else None
        self.run = space.placed(self.ready)  # what asks the model goes through here

    def ready(self):
        """The model. Raises ValueError where the page was started without one."""
        if self.llava is None:
            raise ValueError("no model is loaded, this page replays reports: start app.py with --model tiny to ask")
        return self.llava

    def change(self, name: str, progress: Callable | None = None):
        """Unload the model, load another; where that fails the old one is loaded again. Raises ValueError, OSError."""
        if name not in self.names:
            raise ValueError(f"the model must be one of {', '.join(self.names) or 'none'}, got {name!r}")
        before, self.name, self.llava = self.name, name, None
        free()
        try:
            self.llava = self.load(name, progress=progress)
        except Exception:
            self.name, self.llava = before, self.load(before)
            raise
        return self.llava


def longest(llava) -> int:
    """The most new tokens that may be asked for."""
    return min(512, llava.room() // 2) if llava else 512


def free():
    """Give memory back that nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
