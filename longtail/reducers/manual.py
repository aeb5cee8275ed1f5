import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch

from ..given import number, shown
from ..reducer import Reducer, param, register
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class Manual(Reducer):
    """Keeps the patches that you choose by hand.

    `patches` takes text, "0-23, 40, 100-105" (raster order, from 0, ends included) or one 0 or 1 for every patch; from
    Python also any sequence of indices, or a mask: one boolean a patch, of any shape. Nothing given keeps every patch.
    Where an image has several views, patches count on through them.
    A budget has no hand: `at` takes the first patches. No paper; the mask it draws is the one you gave.
    """

    paper = "https://arxiv.org/abs/2310.03744"
    patches: str = param("", help="indices and ranges such as 0-23, 40, or a 0 or 1 for each patch; empty: all")

    @classmethod
    def at(cls, budget):
        return cls(patches=f"0-{number('Manual.at', budget, 1, whole=True) - 1}")

    def reduce(self, visual):
        n, first = len(visual.features), visual.first
        every, here = sum(visual.views) or n, range(first, first + n)
        return Reduced.select(visual, torch.tensor([i - first for i in self._indices(every) if i in here]))

    def _indices(self, count: int) -> list[int]:
        """The patches named. Raises ValueError where the text does not fit an image of `count` patches."""
        if not self.patches:
            return list(range(count))
        if re.fullmatch(MASK, self.patches) or (len(self.patches) == count > 3 and set(self.patches) <= {"0", "1"}):
            marked = [i for i, mark in enumerate(self.patches) if mark == "1"]
            if len(self.patches) != count or not marked:
                shape = f"{len(marked)} of {len(self.patches)} patches"
                raise ValueError(f"Manual.patches marks {shape}, but this image has {count}: mark at least one of them")
            return marked
        spans = [[int(end) for end in part.split("-")] for part in self.patches.split(",")]
        last = max(span[-1] for span in spans)
        if last >= count:
            raise ValueError(f"Manual.patches names patch {last}, but this image has {count}: 0 to {count - 1}")
        return sorted({i for span in spans for i in range(span[0], span[-1] + 1)})

    def _checked(self, parameter, value):
        """The patches as text, in which a record keeps them."""
        text = _tidy(value) if isinstance(value, str) else _as_text(value)
        if text is None:
            wanted = "indices and ranges such as 0-23, 40, or a mask"
            raise ValueError(f"{type(self).__name__}.{parameter.name} must be {wanted}, got {shown(value)}")
        return text


MASK = "[01]{7,}"  # an index has six digits at most


def _tidy(text: str) -> str | None:
    """Text without needless space; None where it is neither indices and ranges nor a mask."""
    mask = "".join(text.split())
    if re.fullmatch(MASK, mask):
        return mask
    spans = [span.split("-") for part in text.split(",") if (span := re.sub(r"\s*-\s*", "-", part.strip()))]
    fine = all(re.fullmatch("[0-9]{1,6}(-[0-9]{1,6})?", "-".join(span)) for span in spans)
    return ",".join(map("-".join, spans)) if fine and all(int(span[0]) <= int(span[-1]) for span in spans) else None


def _as_text(value) -> str | None:
    """Indices or a mask as text of ranges; None for anything else."""
    if not isinstance(value, Iterable):
        return None
    try:
        items = list(_flat(value))
    except RecursionError:
        return None
    if items and all(isinstance(item, bool) for item in items):
        items = [i for i, kept in enumerate(items) if kept] or [-1]  # a mask that keeps nothing is a mistake
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 10**6 for item in items):
        return None
    runs = [list(run) for _, run in groupby(enumerate(sorted(set(items))), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else f"{run[0][1]}" for run in runs)


def _flat(value):
    """The numbers in lists, arrays and tensors of any depth, as Python's own."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        yield value
    else:
        for item in value:
            yield from _flat(item)
