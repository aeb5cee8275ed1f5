import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch

from ..reducer import Reducer, param, register
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class Manual(Reducer):
    """Keeps the patches that you choose by hand.

    `patches` takes text, "0-23, 40, 100-105" (raster order, from 0, ends included) or one 0 or 1 for every patch; from
    Python also any sequence of indices, or a mask: one boolean a patch, of any shape. Nothing given keeps every patch.
    A budget has no hand: `at` takes the first patches. No paper; the mask it draws is the one you gave.
    """

    paper = "https://arxiv.org/abs/2310.03744"
    patches: str = param("", help="indices and ranges such as 0-23, 40, or a 0 or 1 for each patch; empty: all")

    @classmethod
    def at(cls, budget):
        if budget < 1:
            raise ValueError(f"Manual.at takes a budget of at least 1, got {budget}")
        return cls(patches=f"0-{budget - 1}")

    def reduce(self, visual):
        count = len(visual.features)
        keep = self._indices(count)
        if keep and keep[-1] >= count:
            raise ValueError(f"Manual.patches names patch {keep[-1]}, but this image has {count}: 0 to {count - 1}")
        return Reduced.select(visual, torch.tensor(keep) if keep else torch.arange(count))

    def _indices(self, count: int) -> list[int]:
        """The patches named, ascending."""
        if len(self.patches) == count > 3 and set(self.patches) <= {"0", "1"}:
            return [i for i, mark in enumerate(self.patches) if mark == "1"]
        ends = [[int(end) for end in part.split("-")] for part in self.patches.split(",") if part]
        return sorted({i for span in ends for i in range(span[0], span[-1] + 1)})

    def _checked(self, parameter, value):
        """The patches as text, in which a record keeps them."""
        text = value if isinstance(value, str) else _as_text(value)
        text = None if text is None else re.sub(r"\s", "", text)
        spans = [part.split("-") for part in (text or "").split(",") if part]
        fine = all(re.fullmatch(r"\d+(-\d+)?", "-".join(span)) and int(span[0]) <= int(span[-1]) for span in spans)
        if text is None or not fine:
            wanted = "indices and ranges such as 0-23, 40, or a mask"
            raise ValueError(f"{type(self).__name__}.{parameter.name} must be {wanted}, got {value!r}")
        return text


def _as_text(value) -> str | None:
    """Indices or a mask as text of ranges; None for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Iterable) or isinstance(value, dict | bytes):
        return None
    items = [item for row in value for item in (row if isinstance(row, list | tuple) else [row])]
    if items and all(isinstance(item, bool) for item in items):
        items = [i for i, kept in enumerate(items) if kept] or [-1]  # a mask that keeps nothing is a mistake
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
        return None
    runs = [list(run) for _, run in groupby(enumerate(sorted(set(items))), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0][1]}-{run[-1][1]}" for run in runs)
